// The gradient of max pooling as a handler of XLA.

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace deepjax_native {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;
using Numbers = ffi::Span<const int64_t>;
using Three = std::array<int64_t, 3>;

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Three spatial axes; missing ones have one pixel and a window of one.
struct Pool {
  int64_t batch, features;
  Three size, out, window, stride, low;
};

template <class Sequence>
Three Axes(const Sequence& numbers, int64_t missing) {
  Three three{missing, missing, missing};
  std::copy(numbers.begin(), numbers.end(), three.end() - numbers.size());
  return three;
}

// The pixels of a window that are in x: where each begins in x.
struct Taps {
  std::vector<int64_t> offsets;

  void Find(const Pool& p, int64_t i, int64_t j, int64_t k) {
    offsets.clear();
    const Three at{i, j, k};
    Three begin, end;
    for (int axis = 0; axis < 3; axis++) {
      const int64_t first = at[axis] * p.stride[axis] - p.low[axis];
      begin[axis] = std::max<int64_t>(0, first);
      end[axis] = std::min(p.size[axis], first + p.window[axis]);
    }
    for (int64_t a = begin[0]; a < end[0]; a++) {
      for (int64_t b = begin[1]; b < end[1]; b++) {
        for (int64_t c = begin[2]; c < end[2]; c++) {
          offsets.push_back(((a * p.size[1] + b) * p.size[2] + c) * p.features);
        }
      }
    }
  }
};

// Adds dy to the largest of the taps, the first of equal ones, for each of `features` features.
__attribute__((target_clones("avx512f", "avx2", "default"))) void AddToLargest(const std::vector<int64_t>& offsets,
                                                                               int64_t features, const float* x,
                                                                               const float* dy, float* dx) {
  const auto taps = static_cast<int32_t>(offsets.size());
  const int64_t* const offset = offsets.data();
  int64_t f = 0;
  for (; f + kLanes <= features; f += kLanes) {
    Floats best, pixel, gradient, sum;
    Integers where = {};
    std::memcpy(&best, x + offset[0] + f, sizeof best);
    for (int32_t tap = 1; tap < taps; tap++) {
      std::memcpy(&pixel, x + offset[tap] + f, sizeof pixel);
      const Integers keep = best >= pixel;  // false for NaN, as in XLA
      best = keep ? best : pixel;
      where = keep ? where : tap;
    }
    std::memcpy(&gradient, dy + f, sizeof gradient);
    for (int32_t tap = 0; tap < taps; tap++) {
      std::memcpy(&sum, dx + offset[tap] + f, sizeof sum);
      sum = where == tap ? sum + gradient : sum;
      std::memcpy(dx + offset[tap] + f, &sum, sizeof sum);
    }
  }
  for (; f < features; f++) {
    int64_t best = offset[0];
    for (int32_t tap = 1; tap < taps; tap++) {
      if (!(x[best + f] >= x[offset[tap] + f])) best = offset[tap];
    }
    dx[best + f] += dy[f];
  }
}

// The features [begin, end) of one example. dx is 0 before.
void Example(const Pool& p, int64_t begin, int64_t end, const float* x, const float* dy, float* dx) {
  Taps taps;
  for (int64_t i = 0; i < p.out[0]; i++) {
    for (int64_t j = 0; j < p.out[1]; j++) {
      for (int64_t k = 0; k < p.out[2]; k++, dy += p.features) {
        taps.Find(p, i, j, k);
        if (taps.offsets.empty()) continue;
        AddToLargest(taps.offsets, end - begin, x + begin, dy + begin, dx + begin);
      }
    }
  }
}

ffi::Error MaxPoolGradient(ffi::ThreadPool threads, Array x, Array dy, Result dx, Numbers window, Numbers stride,
                           Numbers low) {
  const auto a = x.dimensions(), b = dy.dimensions();
  const Pool p{a[0],
               a.back(),
               Axes(std::vector<int64_t>(a.begin() + 1, a.end() - 1), 1),
               Axes(std::vector<int64_t>(b.begin() + 1, b.end() - 1), 1),
               Axes(window, 1),
               Axes(stride, 1),
               Axes(low, 0)};
  std::memset(dx->typed_data(), 0, dx->size_bytes());
  if (dx->element_count() == 0 || dy.element_count() == 0) return ffi::Error::Success();
  const int64_t x_row = p.size[0] * p.size[1] * p.size[2] * p.features, y_row = dy.element_count() / p.batch;
  // Examples are divided, and the features of each if there are too few.
  const int64_t blocks = (p.features + kLanes - 1) / kLanes, count = Threads(threads);
  const int64_t ranges = std::min(blocks, (count + p.batch - 1) / p.batch);
  const int64_t range = (blocks + ranges - 1) / ranges * kLanes;
  try {
    Parallel(threads, p.batch * ranges, [&](int64_t task) {
      const int64_t row = task / ranges, begin = task % ranges * range;
      Example(p, std::min(begin, p.features), std::min(begin + range, p.features), x.typed_data() + row * x_row,
              dy.typed_data() + row * y_row, dx->typed_data() + row * x_row);
    });
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("deepjax_native: ") + error.what());
  }
  return ffi::Error::Success();
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<Numbers>("window")
      .Attr<Numbers>("stride")
      .Attr<Numbers>("low");
}

}  // namespace
}  // namespace deepjax_native

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(MaxPoolGradient, deepjax_native::MaxPoolGradient, deepjax_native::Binding());
#pragma GCC visibility pop
