#include "plan.h"

#include <map>
#include <mutex>
#include <numeric>

#include "threads.h"

namespace deepjax_native {
namespace {

using dnnl::memory;
using Dims = memory::dims;

constexpr size_t kMaxPlans = 4096;  // a program has a few hundred

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

// oneDNN names the axes [batch, features, *spatial]; in memory the features are last.
memory::desc Activations(int64_t batch, int64_t features, const Dims& spatial) {
  Dims dims{batch, features}, strides(spatial.size() + 2);
  dims.insert(dims.end(), spatial.begin(), spatial.end());
  strides[1] = 1;
  int64_t stride = features;
  for (size_t axis = dims.size() - 1; axis >= 2; axis--) {
    strides[axis] = stride;
    stride *= dims[axis];
  }
  strides[0] = stride;
  return memory::desc(dims, memory::data_type::f32, strides);
}

// [groups, out, in, *window] in oneDNN, [*window, in, groups * out] in memory. Without groups if there is one.
memory::desc Kernel(const Shape& s) {
  Dims dims{s.groups, s.features_out / s.groups, s.features_in / s.groups};
  Dims strides{dims[1], 1, s.features_all};
  dims.insert(dims.end(), s.window.begin(), s.window.end());
  strides.resize(dims.size());
  int64_t stride = s.features_all * dims[2];
  for (size_t axis = dims.size() - 1; axis >= 3; axis--) {
    strides[axis] = stride;
    stride *= dims[axis];
  }
  if (s.groups == 1) {
    dims.erase(dims.begin());
    strides.erase(strides.begin());
  }
  return memory::desc(dims, memory::data_type::f32, strides);
}

int64_t Product(Dims::const_iterator begin, Dims::const_iterator end) {
  return std::accumulate(begin, end, int64_t{1}, std::multiplies<>());
}

dnnl::primitive Reorder(const memory::desc& from, const memory::desc& to) {
  return dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
}

}  // namespace

int64_t Shape::XPixel() const { return Product(size.begin() + 1, size.end()) * features_in; }
int64_t Shape::YPixel() const { return Product(out.begin() + 1, out.end()) * features_out; }
int64_t Shape::KernelSize() const {
  return Product(window.begin(), window.end()) * (features_in / groups) * features_out;
}

std::vector<int64_t> Shape::Key() const {
  std::vector<int64_t> key{batch, features_in, features_out, features_all, groups};
  for (const auto* v : {&size, &out, &window, &stride, &low, &high, &dilation}) {
    key.insert(key.end(), v->begin(), v->end());
  }
  return key;
}

Plan::Plan(Map map, const Shape& s)
    : x_(Activations(s.batch, s.features_in, s.size)),
      y_(Activations(s.batch, s.features_out, s.out)),
      hwio_(Kernel(s)) {
  NoOpenMp guard;  // oneDNN compiles for the number of threads that it sees now
  const memory::desc any(hwio_.get_dims(), memory::data_type::f32, memory::format_tag::any);
  Dims dilation = s.dilation;
  for (auto& d : dilation) d -= 1;  // oneDNN counts the pixels between two taps
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      Engine(), dnnl::prop_kind::forward_training, direct, x_, any, y_, s.stride, dilation, s.low, s.high, attributes);
  switch (map) {
    case Map::kForward:
      x_argument_ = DNNL_ARG_SRC, kernel_argument_ = DNNL_ARG_WEIGHTS, y_argument_ = DNNL_ARG_DST;
      kernel_ = forward.weights_desc();
      Compile(forward);
      break;
    case Map::kInputGradient: {
      x_argument_ = DNNL_ARG_DIFF_SRC, kernel_argument_ = DNNL_ARG_WEIGHTS, y_argument_ = DNNL_ARG_DIFF_DST;
      const dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), direct, x_, any, y_, s.stride, dilation, s.low, s.high, forward, attributes);
      kernel_ = backward.weights_desc();
      Compile(backward);
      break;
    }
    case Map::kKernelGradient: {
      x_argument_ = DNNL_ARG_SRC, kernel_argument_ = DNNL_ARG_DIFF_WEIGHTS, y_argument_ = DNNL_ARG_DIFF_DST;
      const dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), direct, x_, any, y_, s.stride, dilation, s.low, s.high, forward, attributes);
      kernel_ = backward.diff_weights_desc();
      Compile(backward);
      break;
    }
  }
  reorder_ = map == Map::kKernelGradient ? Reorder(kernel_, hwio_) : Reorder(hwio_, kernel_);
}

template <class Description>
void Plan::Compile(const Description& description) {
  scratch_ = description.scratchpad_desc();
  primitive_ = dnnl::primitive(description);
}

std::shared_ptr<const Plan> Plan::Find(Map map, const Shape& shape) {
  static std::mutex mutex;
  static std::map<std::vector<int64_t>, std::shared_ptr<const Plan>> plans;
  auto key = shape.Key();
  key.push_back(static_cast<int64_t>(map));
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
  }
  // Compiled outside of the lock; if two threads do it at once, the second result replaces an equal one.
  auto plan = std::make_shared<const Plan>(map, shape);
  std::lock_guard<std::mutex> lock(mutex);
  if (plans.size() >= kMaxPlans) plans.clear();
  return plans[std::move(key)] = std::move(plan);
}

void Plan::Pack(const float* kernel, float* packed) const {
  NoOpenMp guard;
  const memory from(hwio_, Engine(), const_cast<float*>(kernel)), to(kernel_, Engine(), packed);
  reorder_.execute(Stream(), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
}

void Plan::Unpack(const float* packed, float* kernel) const {
  NoOpenMp guard;
  const memory from(kernel_, Engine(), const_cast<float*>(packed)), to(hwio_, Engine(), kernel);
  reorder_.execute(Stream(), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
}

void Plan::Run(float* x, float* packed, float* y) const {
  thread_local Buffer scratch;
  NoOpenMp guard;
  primitive_.execute(Stream(), {{x_argument_, memory(x_, Engine(), x)},
                                {kernel_argument_, memory(kernel_, Engine(), packed)},
                                {y_argument_, memory(y_, Engine(), y)},
                                {DNNL_ARG_SCRATCHPAD, memory(scratch_, Engine(), scratch.Get(scratch_.get_size()))}});
}

}  // namespace deepjax_native
