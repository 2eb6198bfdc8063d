// A convolution of oneDNN for one shape.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

namespace deepjax_native {

enum class Map : int64_t { kForward, kInputGradient, kKernelGradient };

// A convolution from x [batch, *size, features_in] to y [batch, *out, features_out]. Vectors have one entry per
// spatial axis. The features of y are the first ones of an array of `features_all` in the kernel.
struct Shape {
  int64_t batch, features_in, features_out, features_all, groups;
  std::vector<int64_t> size, out, window, stride, low, high, dilation;

  int64_t XPixel() const;  // elements of one index of the first spatial axis of x
  int64_t YPixel() const;
  int64_t XRow() const { return size[0] * XPixel(); }  // elements of one example of x
  int64_t YRow() const { return out[0] * YPixel(); }
  int64_t KernelSize() const;
  std::vector<int64_t> Key() const;
};

// One of the three maps for a shape, compiled for the thread that calls it, without OpenMP.
//
// x and y are the arrays of JAX, with features last. The kernel has the layout that oneDNN's code for this shape reads
// or writes.
class Plan {
 public:
  Plan(Map map, const Shape& shape);

  // The plan of these arguments, from a cache. Any number of threads may call it, and use the same plan.
  static std::shared_ptr<const Plan> Find(Map map, const Shape& shape);

  bool SameLayout(const Plan& other) const { return kernel_ == other.kernel_; }
  size_t KernelBytes() const { return kernel_.get_size(); }

  // Copy a kernel from JAX's layout [*window, in, out] to the plan's, or back.
  void Pack(const float* kernel, float* packed) const;
  void Unpack(const float* packed, float* kernel) const;

  // Compute y, x or the packed kernel from the two others.
  void Run(float* x, float* packed, float* y) const;

 private:
  dnnl::memory::desc x_, y_, hwio_, kernel_, scratch_;
  dnnl::primitive primitive_, reorder_;
  int x_argument_, y_argument_, kernel_argument_;

  template <class Description>
  void Compile(const Description& description);
};

}  // namespace deepjax_native
