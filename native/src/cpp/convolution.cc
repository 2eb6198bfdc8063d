// The three maps of a convolution as handlers of XLA.
//
// The work is divided among threads of XLA's own pool, and each runs oneDNN on its part without OpenMP: OpenMP's threads
// would compete with XLA's, and those of several devices with each other.

#include <cstring>
#include <stdexcept>
#include <string>

#include "divide.h"
#include "plan.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace deepjax_native {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;
using Numbers = ffi::Span<const int64_t>;
using PlanPointer = std::shared_ptr<const Plan>;

std::vector<PlanPointer> FindPlans(Map map, const std::vector<Part>& parts) {
  std::vector<PlanPointer> plans;
  for (const Part& part : parts) plans.push_back(Plan::Find(map, part.shape));
  return plans;
}

// A kernel in the layouts of all plans.
class PackedKernels {
 public:
  PackedKernels(ffi::ThreadPool& pool, const float* kernel, const std::vector<PlanPointer>& plans, Buffer& buffer) {
    std::vector<size_t> layouts, offsets{0};  // a plan of each layout, and where it begins
    for (size_t i = 0; i < plans.size(); i++) {
      size_t same = 0;
      while (same < layouts.size() && !plans[layouts[same]]->SameLayout(*plans[i])) same++;
      if (same == layouts.size()) {
        layouts.push_back(i);
        offsets.push_back(offsets.back() + (plans[i]->KernelBytes() + 63) / 64 * 64);
      }
      layout_.push_back(same);
    }
    auto* bytes = reinterpret_cast<char*>(buffer.Get(offsets.back()));
    for (size_t i = 0; i < layouts.size(); i++) packed_.push_back(reinterpret_cast<float*>(bytes + offsets[i]));
    Parallel(pool, layouts.size(), [&](int64_t i) { plans[layouts[i]]->Pack(kernel, packed_[i]); });
  }

  float* operator[](int64_t part) const { return packed_[layout_[part]]; }

 private:
  std::vector<size_t> layout_;
  std::vector<float*> packed_;
};

// y from x and the kernel, or x from y and the kernel.
void RunActivations(ffi::ThreadPool& pool, Map map, const Shape& s, float* x, const float* kernel, float* y) {
  thread_local Buffer buffer;
  const auto parts = Divide(map, s, Threads(pool)).parts;
  const auto plans = FindPlans(map, parts);
  const PackedKernels packed(pool, kernel, plans, buffer);
  Parallel(pool, parts.size(), [&](int64_t i) { plans[i]->Run(x + parts[i].x, packed[i], y + parts[i].y); });
}

// Copy the features of y that a part needs next to each other.
float* Gather(const Part& part, const float* y, Buffer& buffer) {
  const int64_t features = part.shape.features_out, pixels = part.shape.batch * part.shape.YRow() / features;
  float* gathered = buffer.Get(pixels * features * sizeof(float));
  for (int64_t i = 0; i < pixels; i++) {
    std::memcpy(gathered + i * features, y + i * part.shape.features_all + part.feature, features * sizeof(float));
  }
  return gathered;
}

// Each part computes some features of the kernel.
void RunKernelFeatures(ffi::ThreadPool& pool, const std::vector<Part>& parts, float* x, float* y, float* kernel) {
  const auto plans = FindPlans(Map::kKernelGradient, parts);
  Parallel(pool, parts.size(), [&](int64_t i) {
    thread_local Buffer gathered, packed;
    float* buffer = packed.Get(plans[i]->KernelBytes());
    plans[i]->Run(x, buffer, Gather(parts[i], y, gathered));
    plans[i]->Unpack(buffer, kernel + parts[i].feature);
  });
}

// Add `others` kernels, one after the other in memory, to a kernel of `size` numbers.
void AddUp(ffi::ThreadPool& pool, float* kernel, const float* kernels, int64_t size, int64_t others) {
  if (others == 0) return;
  const int64_t ranges = others + 1, range = (size + others) / ranges;
  Parallel(pool, ranges, [&](int64_t i) {
    const int64_t begin = std::min(size, i * range), end = std::min(size, begin + range);
    for (int64_t other = 0; other < others; other++) {
      const float* from = kernels + other * size;
      for (int64_t k = begin; k < end; k++) kernel[k] += from[k];
    }
  });
}

// Each part computes a kernel, and all are added.
void RunKernelSums(ffi::ThreadPool& pool, const std::vector<Part>& parts, float* x, float* y, const Shape& s,
                   float* kernel) {
  thread_local Buffer sums;
  const auto plans = FindPlans(Map::kKernelGradient, parts);
  const int64_t size = s.KernelSize(), count = parts.size();
  float* kernels = sums.Get((count - 1) * size * sizeof(float));
  Parallel(pool, count, [&](int64_t i) {
    thread_local Buffer packed;
    float* buffer = packed.Get(plans[i]->KernelBytes());
    plans[i]->Run(x + parts[i].x, buffer, y + parts[i].y);
    plans[i]->Unpack(buffer, i == 0 ? kernel : kernels + (i - 1) * size);
  });
  AddUp(pool, kernel, kernels, size, count - 1);
}

// Whether the kernel has one tap, which reads every pixel of x once: then its gradient is a product of matrices.
bool IsPointwise(const Shape& s) {
  bool one = s.groups == 1 && s.size == s.out;
  for (size_t i = 0; i < s.window.size(); i++) one = one && s.window[i] == 1 && s.low[i] == 0 && s.stride[i] == 1;
  return one;
}

// kernel [in, out] = x^T y over `pixels` of x and y, for the first `features` of the `out` of y and the kernel.
void Product(const Shape& s, int64_t features, int64_t pixels, const float* x, const float* y, float* kernel) {
  NoOpenMp guard;
  const int64_t in = s.features_in, out = s.features_out;
  const auto status = dnnl_sgemm('T', 'N', in, features, pixels, 1.0f, x, in, y, out, 0.0f, kernel, out);
  if (status != dnnl_success) throw std::runtime_error("oneDNN: a product of matrices failed");
}

// How many of `total` numbers each thread takes, in whole blocks.
int64_t Range(int64_t total, int64_t block, int64_t threads) {
  const int64_t blocks = (total + block - 1) / block;
  return (blocks + threads - 1) / threads * block;
}

// Up to 1.4 times as fast as oneDNN's convolution if there are few features in, and never slower.
void RunPointwise(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* y, float* kernel) {
  thread_local Buffer sums;
  const int64_t in = s.features_in, out = s.features_out, pixels = s.batch * s.YRow() / out, size = in * out;
  if (size > pixels * out) {  // as in Divide
    const int64_t range = Range(out, 16, Threads(pool));
    Parallel(pool, (out + range - 1) / range, [&](int64_t i) {
      const int64_t begin = i * range;
      Product(s, std::min(range, out - begin), pixels, x, y + begin, kernel + begin);
    });
    return;
  }
  const int64_t range = Range(pixels, 1, Threads(pool)), count = (pixels + range - 1) / range;
  float* kernels = sums.Get((count - 1) * size * sizeof(float));
  Parallel(pool, count, [&](int64_t i) {
    const int64_t begin = i * range;
    Product(s, out, std::min(range, pixels - begin), x + begin * in, y + begin * out,
            i == 0 ? kernel : kernels + (i - 1) * size);
  });
  AddUp(pool, kernel, kernels, size, count - 1);
}

void RunKernelGradient(ffi::ThreadPool& pool, const Shape& s, float* x, float* y, float* kernel) {
  if (IsPointwise(s)) return RunPointwise(pool, s, x, y, kernel);
  const auto [parts, division] = Divide(Map::kKernelGradient, s, Threads(pool));
  if (division == Division::kFeatures) {
    RunKernelFeatures(pool, parts, x, y, kernel);
  } else {
    RunKernelSums(pool, parts, x, y, s, kernel);
  }
}

std::vector<int64_t> Vector(Numbers numbers) { return {numbers.begin(), numbers.end()}; }

Shape MakeShape(const Array& x, const Array& kernel, const Array& y, Numbers stride, Numbers low, Numbers high,
                Numbers dilation, int64_t groups) {
  const auto a = x.dimensions(), k = kernel.dimensions(), b = y.dimensions();
  return {a[0],
          a.back(),
          b.back(),
          b.back(),
          groups,
          {a.begin() + 1, a.end() - 1},
          {b.begin() + 1, b.end() - 1},
          {k.begin(), k.end() - 2},
          Vector(stride),
          Vector(low),
          Vector(high),
          Vector(dilation)};
}

// Calls compute() unless an array is empty; then the result, a sum over nothing, is 0.
template <class Compute>
ffi::Error Guarded(const Array& a, const Array& b, Array& result, const Compute& compute) {
  try {
    if (a.element_count() == 0 || b.element_count() == 0 || result.element_count() == 0) {
      std::memset(result.typed_data(), 0, result.size_bytes());
    } else {
      compute();
    }
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("deepjax_native: oneDNN: ") + error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("deepjax_native: ") + error.what());
  }
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array kernel, Result y, Numbers stride, Numbers low, Numbers high,
                   Numbers dilation, int64_t groups) {
  return Guarded(x, kernel, *y, [&] {
    const Shape shape = MakeShape(x, kernel, *y, stride, low, high, dilation, groups);
    RunActivations(pool, Map::kForward, shape, x.typed_data(), kernel.typed_data(), y->typed_data());
  });
}

ffi::Error InputGradient(ffi::ThreadPool pool, Array dy, Array kernel, Result dx, Numbers stride, Numbers low,
                         Numbers high, Numbers dilation, int64_t groups) {
  return Guarded(dy, kernel, *dx, [&] {
    const Shape shape = MakeShape(*dx, kernel, dy, stride, low, high, dilation, groups);
    RunActivations(pool, Map::kInputGradient, shape, dx->typed_data(), kernel.typed_data(), dy.typed_data());
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array dy, Result dkernel, Numbers stride, Numbers low,
                          Numbers high, Numbers dilation, int64_t groups) {
  return Guarded(x, dy, *dkernel, [&] {
    const Shape shape = MakeShape(x, *dkernel, dy, stride, low, high, dilation, groups);
    RunKernelGradient(pool, shape, x.typed_data(), dy.typed_data(), dkernel->typed_data());
  });
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<Numbers>("stride")
      .Attr<Numbers>("low")
      .Attr<Numbers>("high")
      .Attr<Numbers>("dilation")
      .Attr<int64_t>("groups");
}

}  // namespace
}  // namespace deepjax_native

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(Forward, deepjax_native::Forward, deepjax_native::Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(InputGradient, deepjax_native::InputGradient, deepjax_native::Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KernelGradient, deepjax_native::KernelGradient, deepjax_native::Binding());
#pragma GCC visibility pop
