// What both passes share: typed views of images, rows and sources, and the loop over the images of a batch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "buffers.h"
#include "kernels/cpu/isa.h"
#include "pass.h"

namespace advnas {

inline ImageShape shape_of(const at::Tensor& x) { return {x.size(2), x.size(3), x.size(1)}; }

inline at::Tensor empty_images(int64_t batch, const ImageShape& shape, at::ScalarType type) {
  return empty_buffer({batch, shape.channels, shape.height, shape.width}, type);
}

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
  for (auto image = partial.begin(); image != partial.end(); image += width) {
    std::transform(sum.begin(), sum.end(), image, sum.begin(), std::plus<>());
  }
  return sum;
}

// The same in groups of images, each thread with its own workspace: body(range, first, images, workspace) after start(range).
template <class T, class Start, class Body>
void for_groups(int64_t batch, int64_t group, int64_t workspace, const Start& start, const Body& body) {
  const at::Tensor spaces = empty_buffer({num_ranges(batch), workspace}, c10::CppTypeToScalarType<T>::value);
  for_ranges(batch, [&](int64_t range, int64_t begin, int64_t end) {
    T* const space = spaces.mutable_data_ptr<T>() + range * workspace;
    start(range);
    for (int64_t first = begin; first < end; first += group) body(range, first, std::min(group, end - first), space);
  });
}

// The sources that a node gathers, for kernels that take one image of each.
template <class T>
class Gathered {
 public:
  void add(const at::Tensor& tensor, const Row& scale, bool pooled) {
    tensors_.push_back(tensor);
    scales_.push_back(cast<T>(scale));
    pooled_.push_back(pooled);
  }
  int64_t num() const { return int64_t(tensors_.size()); }
  int64_t workspace(const ImageShape& shape) const { return node_workspace(shape, num()); }

  // Calls body(sources of one image).
  template <class Body>
  void with_image(int64_t index, const Body& body) const {
    constexpr size_t kMost = 64;  // on the stack: this is called for every image
    TORCH_INTERNAL_ASSERT(tensors_.size() <= kMost);
    const T *images[kMost], *scales[kMost];
    bool pooled[kMost];
    for (size_t k = 0; k < tensors_.size(); ++k) {
      images[k] = image<T>(tensors_[k], index);
      scales[k] = scales_[k].data();
      pooled[k] = pooled_[k];
    }
    body(Sources<T>{num(), images, scales, pooled});
  }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<std::vector<T>> scales_;
  std::vector<bool> pooled_;
};

}  // namespace advnas
