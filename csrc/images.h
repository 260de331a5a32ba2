// What both passes share: typed views of images, rows and sources, and the loop over the images of a batch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
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

// A part of a batch that one thread takes.
struct Share {
  int64_t first, images;
};

// Cuts a batch into shares of whole groups. The first ones, one a thread and three quarters of the batch in all, are equal; the
// rest are small and go to whoever is free: cores are never equally fast for long. What lies in which share depends on nothing
// but the number of threads, and so do sums over them.
inline std::vector<Share> cut(int64_t batch, int64_t group) {
  const int64_t threads = at::get_num_threads(), groups = (batch + group - 1) / group;
  const int64_t equal = threads == 1 ? groups : groups * 3 / 4 / threads;
  constexpr int64_t kMostEach = 8;  // small shares a thread: sums of weights cost memory for each
  const int64_t left = groups - equal * threads, small = (left + kMostEach * threads - 1) / (kMostEach * threads);
  std::vector<Share> shares;
  for (int64_t first = 0; first < groups;) {
    const int64_t wanted = equal > 0 && int64_t(shares.size()) < threads ? equal : small;
    const int64_t begin = first * group;
    first = std::min(first + wanted, groups);
    shares.push_back({begin, std::min(first * group, batch) - begin});
  }
  return shares;
}

inline int64_t num_workers(int64_t shares) { return std::min<int64_t>(shares, at::get_num_threads()); }

// Calls body(worker, share) for every share; workers run at once.
template <class Body>
void for_shares(int64_t shares, const Body& body) {
  const int64_t workers = num_workers(shares);
  std::atomic<int64_t> next{workers};
  at::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int64_t share = worker; share < shares; share = next++) body(worker, share);
    }
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

// The same in groups of images, each worker with its own workspace: body(share, first, images, workspace) after start(share).
template <class T, class Start, class Body>
void for_groups(const std::vector<Share>& shares, int64_t group, int64_t workspace, const Start& start, const Body& body) {
  const int64_t all = int64_t(shares.size());
  const at::Tensor spaces = empty_buffer({num_workers(all), workspace}, c10::CppTypeToScalarType<T>::value);
  for_shares(all, [&](int64_t worker, int64_t share) {
    T* const space = spaces.mutable_data_ptr<T>() + worker * workspace;
    const auto [begin, images] = shares[share];
    start(share);
    for (int64_t first = begin; first < begin + images; first += group) {
      body(share, first, std::min(group, begin + images - first), space);
    }
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
