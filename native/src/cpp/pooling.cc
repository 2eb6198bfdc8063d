// Max pooling and its gradient as handlers of XLA.

#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
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

// Computes the largest of the taps, or NaN if one is NaN, for each of `features` features.
__attribute__((target_clones("avx512f", "avx2", "default"))) void Largest(const std::vector<int64_t>& offsets,
                                                                          int64_t features, const float* x, float* y) {
  const auto taps = static_cast<int32_t>(offsets.size());
  const int64_t* const offset = offsets.data();
  int64_t f = 0;
  for (; f + kLanes <= features; f += kLanes) {
    Floats best, pixel;
    Integers bits, nan = {};
    std::memcpy(&best, x + offset[0] + f, sizeof best);
    for (int32_t tap = 0; tap < taps; tap++) {
      std::memcpy(&pixel, x + offset[tap] + f, sizeof pixel);
      std::memcpy(&bits, &pixel, sizeof bits);
      nan |= (bits & 0x7fffffff) > 0x7f800000;  // in integers, because GCC 12 makes scalar code of best != best
      const Integers keep = best >= pixel;
      best = keep ? best : pixel;
    }
    best = nan ? Floats{} + std::numeric_limits<float>::quiet_NaN() : best;
    std::memcpy(y + f, &best, sizeof best);
  }
  for (; f < features; f++) {
    float best = x[offset[0] + f];
    for (int32_t tap = 1; tap < taps; tap++) {
      const float pixel = x[offset[tap] + f];
      if (!(best >= pixel || best != best)) best = pixel;
    }
    y[f] = best;
  }
}

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

// Calls use(offsets of the taps in x, offset in y) for each window of one example.
template <class Use>
void ForWindows(const Pool& p, const Use& use) {
  Taps taps;
  int64_t y = 0;
  for (int64_t i = 0; i < p.out[0]; i++) {
    for (int64_t j = 0; j < p.out[1]; j++) {
      for (int64_t k = 0; k < p.out[2]; k++, y += p.features) {
        taps.Find(p, i, j, k);
        use(taps.offsets, y);
      }
    }
  }
}

// Calls use(offset in x, offset in y, number of features) for each part of the work: an example, or some of its
// features if there are fewer examples than threads.
template <class Use>
ffi::Error ForParts(ffi::ThreadPool& threads, const Pool& p, const Use& use) {
  const int64_t x_row = p.size[0] * p.size[1] * p.size[2] * p.features;
  const int64_t y_row = p.out[0] * p.out[1] * p.out[2] * p.features;
  if (p.batch * x_row == 0 || y_row == 0) return ffi::Error::Success();
  const int64_t blocks = (p.features + kLanes - 1) / kLanes;
  const int64_t ranges = std::min(blocks, (Threads(threads) + p.batch - 1) / p.batch);
  const int64_t range = (blocks + ranges - 1) / ranges * kLanes;
  try {
    Parallel(threads, p.batch * ranges, [&](int64_t part) {
      const int64_t row = part / ranges, begin = part % ranges * range, features = std::min(range, p.features - begin);
      if (features > 0) use(row * x_row + begin, row * y_row + begin, features);
    });
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("deepjax_native: ") + error.what());
  }
  return ffi::Error::Success();
}

Pool MakePool(const Array& x, const Array& y, Numbers window, Numbers stride, Numbers low) {
  const auto a = x.dimensions(), b = y.dimensions();
  return {a[0],
          a.back(),
          Axes(std::vector<int64_t>(a.begin() + 1, a.end() - 1), 1),
          Axes(std::vector<int64_t>(b.begin() + 1, b.end() - 1), 1),
          Axes(window, 1),
          Axes(stride, 1),
          Axes(low, 0)};
}

ffi::Error MaxPool(ffi::ThreadPool threads, Array x, Result y, Numbers window, Numbers stride, Numbers low) {
  const Pool pool = MakePool(x, *y, window, stride, low);
  return ForParts(threads, pool, [&](int64_t x_offset, int64_t y_offset, int64_t features) {
    const float* from = x.typed_data() + x_offset;
    float* to = y->typed_data() + y_offset;
    ForWindows(pool, [&](const std::vector<int64_t>& taps, int64_t at) {
      if (taps.empty()) {
        std::fill_n(to + at, features, -std::numeric_limits<float>::infinity());
      } else {
        Largest(taps, features, from, to + at);
      }
    });
  });
}

ffi::Error MaxPoolGradient(ffi::ThreadPool threads, Array x, Array dy, Result dx, Numbers window, Numbers stride,
                           Numbers low) {
  const Pool pool = MakePool(x, dy, window, stride, low);
  std::memset(dx->typed_data(), 0, dx->size_bytes());
  return ForParts(threads, pool, [&](int64_t x_offset, int64_t y_offset, int64_t features) {
    const float *from = x.typed_data() + x_offset, *gradient = dy.typed_data() + y_offset;
    float* to = dx->typed_data() + x_offset;
    ForWindows(pool, [&](const std::vector<int64_t>& taps, int64_t at) {
      if (!taps.empty()) AddToLargest(taps, features, from, gradient + at, to);
    });
  });
}

template <class Arguments>
auto Binding(Arguments arguments) {
  return std::move(arguments)
      .template Ret<Array>()
      .template Attr<Numbers>("window")
      .template Attr<Numbers>("stride")
      .template Attr<Numbers>("low");
}

auto OneArray() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>(); }

}  // namespace
}  // namespace deepjax_native

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(MaxPool, deepjax_native::MaxPool,
                              deepjax_native::Binding(deepjax_native::OneArray()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(MaxPoolGradient, deepjax_native::MaxPoolGradient,
                              deepjax_native::Binding(deepjax_native::OneArray().Arg<deepjax_native::Array>()));
#pragma GCC visibility pop
