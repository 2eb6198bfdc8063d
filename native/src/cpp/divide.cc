#include "divide.h"

#include <algorithm>

namespace deepjax_native {
namespace {

constexpr int64_t kBlock = 16;  // oneDNN computes this many features at once

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b > 0); }

int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0); }

std::vector<Part> Examples(const Shape& s, int64_t threads) {
  const int64_t rows = CeilDiv(s.batch, threads);
  std::vector<Part> parts;
  for (int64_t row = 0; row < s.batch; row += rows) {
    parts.push_back({s, row * s.XRow(), row * s.YRow(), 0});
    parts.back().shape.batch = std::min(rows, s.batch - row);
  }
  return parts;
}

// The part of one example with pixels [x0, x1) of x and [y0, y1) of y along the first spatial axis.
//
// `begin` and `end` are what the windows of these y cover; of this, the part pads what x does not have.
Part Slab(const Shape& s, int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
  const int64_t reach = (s.window[0] - 1) * s.dilation[0];
  const int64_t begin = y0 * s.stride[0] - s.low[0], end = (y1 - 1) * s.stride[0] - s.low[0] + reach + 1;
  Part part{s, x0 * s.XPixel(), y0 * s.YPixel(), 0};
  part.shape.batch = 1;
  part.shape.size[0] = x1 - x0;
  part.shape.out[0] = y1 - y0;
  part.shape.low[0] = x0 - begin;
  part.shape.high[0] = std::max<int64_t>(0, end - x1);
  return part;
}

// Divides one example by pixels of y; the slabs of x overlap.
std::vector<Part> SlabsOfY(const Shape& s, int64_t count) {
  const int64_t reach = (s.window[0] - 1) * s.dilation[0];
  std::vector<Part> parts;
  for (int64_t i = 0; i < count; i++) {
    const int64_t y0 = s.out[0] * i / count, y1 = s.out[0] * (i + 1) / count;
    if (y0 == y1) continue;
    const int64_t x0 = std::max<int64_t>(0, y0 * s.stride[0] - s.low[0]);
    const int64_t x1 = std::min(s.size[0], (y1 - 1) * s.stride[0] - s.low[0] + reach + 1);
    if (x0 >= x1) return {};  // windows that lie in the padding
    parts.push_back(Slab(s, x0, x1, y0, y1));
  }
  return parts;
}

// Divides one example by pixels of x, at the first pixels of windows; the slabs of y overlap.
std::vector<Part> SlabsOfX(const Shape& s, int64_t count) {
  const int64_t reach = (s.window[0] - 1) * s.dilation[0], stride = s.stride[0], low = s.low[0];
  std::vector<Part> parts;
  int64_t x0 = 0;
  for (int64_t i = 1; i <= count; i++) {
    int64_t x1 = s.size[0] * i / count;
    if (i < count) x1 -= (x1 + low) % stride;
    if (x1 <= x0) continue;
    const int64_t y0 = std::max<int64_t>(0, CeilDiv(x0 + low - reach, stride));
    const int64_t y1 = std::min(s.out[0], FloorDiv(x1 - 1 + low, stride) + 1);
    if (y0 >= y1 || y0 * stride - low > x0) return {};  // pixels that no window reads
    parts.push_back(Slab(s, x0, x1, y0, y1));
    x0 = x1;
  }
  return parts;
}

std::vector<Part> Slabs(Map map, const Shape& s, int64_t threads) {
  const int64_t count = CeilDiv(threads, s.batch);
  const auto first = map == Map::kInputGradient ? SlabsOfX(s, count) : SlabsOfY(s, count);
  std::vector<Part> parts;
  for (int64_t row = 0; row < s.batch; row++) {
    for (Part part : first) {
      part.x += row * s.XRow();
      part.y += row * s.YRow();
      parts.push_back(part);
    }
  }
  return parts;
}

std::vector<Part> Features(const Shape& s, int64_t threads) {
  const int64_t range = CeilDiv(CeilDiv(s.features_out, kBlock), threads) * kBlock;
  std::vector<Part> parts;
  for (int64_t feature = 0; feature < s.features_out; feature += range) {
    parts.push_back({s, 0, 0, feature});
    parts.back().shape.features_out = std::min(range, s.features_out - feature);
  }
  return parts;
}

}  // namespace

Parts Divide(Map map, const Shape& s, int64_t threads) {
  if (threads > 1 && map == Map::kKernelGradient && s.groups == 1 && s.KernelSize() > s.batch * s.YRow()) {
    return {Features(s, threads), Division::kFeatures};
  }
  std::vector<Part> parts;
  if (threads > 1 && s.batch < threads) parts = Slabs(map, s, threads);
  if (parts.empty()) parts = Examples(s, threads);
  return {parts, Division::kExamples};
}

}  // namespace deepjax_native
