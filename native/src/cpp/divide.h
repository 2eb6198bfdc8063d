// How a convolution is divided among threads.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace deepjax_native {

// A convolution that is a part of another. Its arrays begin at these elements of the other's.
struct Part {
  Shape shape;
  int64_t x, y, feature;  // feature: the first one of y
};

enum class Division { kExamples, kFeatures };

struct Parts {
  std::vector<Part> parts;
  Division division;
};

// Returns at most about `threads` parts, which together compute the map.
//
// Parts of x and y are examples, or pixels of examples if there are too few. Each part of a kernel gradient then has a
// kernel of its own, and these must be added. A kernel that is larger than y is divided by features of y instead.
//
// The division depends only on the arguments, never on what other threads do now: a sum in another order would have
// other bits.
Parts Divide(Map map, const Shape& shape, int64_t threads);

}  // namespace deepjax_native
