// What both passes on the host share: their state, typed views of images and sources, and the loop over the images of a batch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../pass.h"
#include "buffers.h"
#include "shares.h"
#include "statistics.h"

namespace advnas {

// What the forward pass keeps for the backward pass.
struct CpuState {
  std::vector<NormState> norms;  // of each convolution
  // Of each node: whether convolutions are all that arrives there. Their outputs are kept for batch norm, and the node's value is
  // recomputed from them where the backward pass wants it.
  std::vector<bool> recomputed;
};

void run_cpu_forward(Pass& pass, CpuState& state);
Gradients run_cpu_backward(Pass& pass, const CpuState& state, const at::Tensor& dy, const Wanted& wanted);

inline int64_t elements(const ImageShape& shape) { return shape.height * shape.width * shape.channels; }

inline at::Tensor empty_images(int64_t batch, const ImageShape& shape, at::ScalarType type) {
  return empty_buffer({batch, shape.channels, shape.height, shape.width}, type);
}

// Where the images of a tensor lie, nowhere if it is undefined; a tensor itself makes its checks at every access.
template <class T>
class ImageViews {
 public:
  ImageViews() = default;
  explicit ImageViews(const at::Tensor& x) {
    if (!x.defined()) return;
    size_ = x.size(1) * x.size(2) * x.size(3);
    if constexpr (std::is_const_v<T>) {
      data_ = x.const_data_ptr<std::remove_const_t<T>>();
    } else {
      data_ = x.mutable_data_ptr<T>();
    }
  }
  T* operator[](int64_t index) const { return data_ + index * size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Takes the shares in groups of images, each worker with its own workspace: body(share, first, images, workspace).
template <class T, class Body>
void for_groups(const std::vector<Share>& shares, int64_t group, int64_t workspace, BackgroundTasks& tasks, const Body& body) {
  const int64_t num = int64_t(shares.size());
  const at::Tensor spaces = empty_buffer({num_workers(num + tasks.num()), workspace}, c10::CppTypeToScalarType<T>::value);
  for_shares(num, tasks, [&](int64_t worker, int64_t share) {
    T* const space = spaces.mutable_data_ptr<T>() + worker * workspace;
    const auto [begin, images] = shares[share];
    for (int64_t first = begin; first < begin + images; first += group) {
      body(share, first, std::min(group, begin + images - first), space);
    }
  });
}

// Pointers for one image are on the stack, since kernels are called for every image, unless a node has more sources than this.
template <class P>
using Pointers = c10::SmallVector<P, 64>;

// The sources that a node gathers, for kernels that take one image of each. Their tensors must stay where they are.
template <class T>
class Gathered {
 public:
  void add(const at::Tensor& tensor, const Row& scale, Arrival arrival) {
    images_.emplace_back(tensor);
    scales_.push_back(cast<T>(scale));
    arrivals_.push_back(arrival);
  }
  int64_t num() const { return int64_t(images_.size()); }
  int64_t workspace(const ImageShape& shape) const { return node_workspace(shape, num()); }

  // Calls body(sources of one image).
  template <class Body>
  void with_image(int64_t index, const Body& body) const {
    Pointers<const T*> images, scales;
    for (size_t k = 0; k < images_.size(); ++k) {
      images.push_back(images_[k][index]);
      scales.push_back(scales_[k].data());
    }
    body(Sources<T>{num(), images.data(), scales.data(), arrivals_.data()});
  }

 private:
  std::vector<ImageViews<const T>> images_;
  std::vector<std::vector<T>> scales_;
  std::vector<Arrival> arrivals_;
};

// What arrives at `node`; adds the part of it that is the same at every pixel to `bias`.
template <class T>
Gathered<T> gather_value(const Pass& pass, const CpuState& state, int64_t node, Row& bias) {
  Gathered<T> sources;
  for (const Term& term : pass.plan.into[node]) {
    if (term.is_baseline()) continue;
    const double gate = pass.gate_of(term);
    Row scale(bias.size(), gate);
    if (term.convolution < 0) {
      sources.add(pass.nodes[term.source], scale, term.piece.arrival);
      continue;
    }
    const NormState& norm = state.norms[term.convolution];
    for (size_t c = 0; c < bias.size(); ++c) {
      const ScaleShift<double> map = batch_norm_forward(gate, norm.gamma[c], norm.beta[c], norm.mean[c], norm.rstd[c]);
      scale[c] = map.scale;
      bias[c] += map.shift;
    }
    sources.add(pass.z[term.convolution], scale, Arrival::kIdentity);
  }
  return sources;
}

}  // namespace advnas
