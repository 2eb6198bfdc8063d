// The three maps of a convolution as handlers of XLA.
//
// The batch is divided among threads of XLA's own pool, and each runs oneDNN on its part without OpenMP, so that
// threads of OpenMP never compete with XLA's. OpenMP is used only where the batch cannot be divided well.

#include <cstring>
#include <string>

#include "plan.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace deepjax_native {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;
using Numbers = ffi::Span<const int64_t>;

// How a batch is divided: `count` parts of `rows` examples, the last of which may be smaller. A part that is the
// whole batch uses `threads` threads of OpenMP, other parts one.
struct Parts {
  int64_t batch, rows, count, threads;

  int64_t Rows(int64_t part) const { return std::min(rows, batch - part * rows); }
};

Parts Whole(int64_t batch, int64_t threads) { return {batch, batch, 1, threads}; }

// The division depends only on the shape and the number of threads, never on what other threads do now: a sum in
// another order would be another sum.
Parts Divide(Map map, const Shape& s, int64_t threads) {
  if (threads == 1 || s.batch < threads) return Whole(s.batch, threads);
  if (map == Map::kKernelGradient) {
    // Each part writes a kernel of its own, and all are added. This must not be more work than reading x and y.
    int64_t kernel = s.features_in / s.groups * s.features_out;
    for (int64_t w : s.window) kernel *= w;
    if (kernel * threads > s.batch * (s.XRow() + s.YRow())) return Whole(s.batch, threads);
  }
  const int64_t rows = (s.batch + threads - 1) / threads;
  return {s.batch, rows, (s.batch + rows - 1) / rows, 1};
}

// The plans of the parts: they differ only if the last part is smaller.
class Plans {
 public:
  Plans(Map map, Shape shape, const Parts& parts) : last_index_(parts.count - 1) {
    const auto threads = static_cast<int>(parts.threads);
    shape.batch = parts.Rows(0);
    first = Plan::Find(map, shape, threads);
    shape.batch = parts.Rows(last_index_);
    last = Plan::Find(map, shape, threads);
  }
  const Plan& operator[](int64_t part) const { return part == last_index_ ? *last : *first; }

  std::shared_ptr<const Plan> first, last;

 private:
  int64_t last_index_;
};

std::mutex& OpenMpTurn() {
  static std::mutex mutex;
  return mutex;
}

// Several devices may call at once. Their teams of OpenMP take turns, because each has a thread for every core.
std::unique_lock<std::mutex> Turn(const Parts& parts) {
  return parts.threads > 1 ? std::unique_lock<std::mutex>(OpenMpTurn()) : std::unique_lock<std::mutex>();
}

// y from x and the kernel, or x from y and the kernel.
void RunActivations(ffi::ThreadPool& pool, Map map, const Shape& s, float* x, const float* kernel, float* y) {
  thread_local Buffer first_kernel, last_kernel;
  const Parts parts = Divide(map, s, Threads(pool));
  const auto turn = Turn(parts);
  const Plans plans(map, s, parts);
  float* first = first_kernel.Get(plans.first->KernelBytes());
  plans.first->Pack(kernel, first);
  float* last = first;
  if (!plans.last->SameKernel(*plans.first)) {
    last = last_kernel.Get(plans.last->KernelBytes());
    plans.last->Pack(kernel, last);
  }
  Parallel(pool, parts.count, [&](int64_t part) {
    const int64_t row = part * parts.rows;
    plans[part].Run(x + row * s.XRow(), part == parts.count - 1 ? last : first, y + row * s.YRow());
  });
}

// Add arrays of `size` numbers, one after the other in memory, to the first of them, in parallel over the numbers.
void AddUp(ffi::ThreadPool& pool, float* arrays, int64_t size, int64_t count, int64_t threads) {
  const int64_t range = (size + threads - 1) / threads;
  Parallel(pool, threads, [&](int64_t thread) {
    const int64_t begin = std::min(size, thread * range), end = std::min(size, begin + range);
    for (int64_t array = 1; array < count; array++) {
      const float* from = arrays + array * size;
      for (int64_t i = begin; i < end; i++) arrays[i] += from[i];
    }
  });
}

void RunKernelGradient(ffi::ThreadPool& pool, const Shape& s, float* x, float* y, float* kernel) {
  thread_local Buffer sums;
  const int64_t threads = Threads(pool);
  Parts parts = Divide(Map::kKernelGradient, s, threads);
  auto plans = std::make_unique<Plans>(Map::kKernelGradient, s, parts);
  if (!plans->first->SameKernel(*plans->last)) {  // kernels of different layouts cannot be added
    parts = Whole(s.batch, threads);
    plans = std::make_unique<Plans>(Map::kKernelGradient, s, parts);
  }
  const auto turn = Turn(parts);
  const int64_t size = plans->first->KernelBytes() / sizeof(float);
  float* arrays = sums.Get(parts.count * size * sizeof(float));
  Parallel(pool, parts.count, [&](int64_t part) {
    const int64_t row = part * parts.rows;
    (*plans)[part].Run(x + row * s.XRow(), arrays + part * size, y + row * s.YRow());
  });
  if (parts.count > 1) AddUp(pool, arrays, size, parts.count, threads);
  plans->first->Unpack(arrays, kernel);
}

std::vector<int64_t> Vector(Numbers numbers) { return {numbers.begin(), numbers.end()}; }

Shape MakeShape(const Array& x, const Array& kernel, const Array& y, Numbers stride, Numbers low, Numbers high,
                Numbers dilation, int64_t groups) {
  const auto a = x.dimensions(), k = kernel.dimensions(), b = y.dimensions();
  return {a[0],
          a.back(),
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
