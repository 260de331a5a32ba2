// What both passes share: typed views of images, rows and sources, and the loop over the images of a batch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/isa.h"
#include "pass.h"

namespace advnas {

inline ImageShape shape_of(const at::Tensor& x) { return {x.size(2), x.size(3), x.size(1)}; }

template <class T>
const T* image(const at::Tensor& x, int64_t index) {
  return x.const_data_ptr<T>() + index * x.size(1) * x.size(2) * x.size(3);
}
template <class T>
T* mutable_image(const at::Tensor& x, int64_t index) {
  return x.mutable_data_ptr<T>() + index * x.size(1) * x.size(2) * x.size(3);
}

template <class T>
std::vector<T> cast(const Row& row) {
  return {row.begin(), row.end()};
}

// How many ranges of images run at once.
inline int64_t num_ranges(int64_t batch) { return std::max<int64_t>(1, std::min<int64_t>(batch, at::get_num_threads())); }

// Calls body(range, begin, end) for every range, each in one thread.
template <class Body>
void for_ranges(int64_t batch, const Body& body) {
  const int64_t ranges = num_ranges(batch);
  at::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    for (int64_t range = first; range < last; ++range) body(range, range * batch / ranges, (range + 1) * batch / ranges);
  });
}

// partial: [batch, width] -> [width], in the order of the images.
inline Row sum_images(const Row& partial, int64_t width) {
  Row sum(width);
  for (size_t i = 0; i < partial.size(); ++i) sum[i % width] += partial[i];
  return sum;
}

// The sources that a node gathers, for kernels that take one image of each.
template <class T>
class Gathered {
 public:
  void add_scaled(const at::Tensor& tensor, const Row& scale) {
    scaled_.push_back(tensor);
    scales_.push_back(cast<T>(scale));
  }
  void add_pooled(const at::Tensor& tensor, double gate) {
    pooled_.push_back(tensor);
    gates_.push_back(T(gate));
  }
  int64_t num_scaled() const { return int64_t(scaled_.size()); }
  int64_t num_pooled() const { return int64_t(pooled_.size()); }
  int64_t workspace(const ImageShape& shape) const { return pooled_.empty() ? 0 : pool_workspace(shape); }

  // Calls body(sources of one image).
  template <class Body>
  void with_image(int64_t index, const Body& body) const {
    std::vector<const T*> images, scales;
    for (const at::Tensor& tensor : scaled_) images.push_back(image<T>(tensor, index));
    for (const at::Tensor& tensor : pooled_) images.push_back(image<T>(tensor, index));
    for (const auto& scale : scales_) scales.push_back(scale.data());
    body(Sources<T>{images.data(), scales.data(), num_scaled(), images.data() + num_scaled(), gates_.data(), num_pooled()});
  }

 private:
  std::vector<at::Tensor> scaled_, pooled_;
  std::vector<std::vector<T>> scales_;
  std::vector<T> gates_;
};

}  // namespace advnas
