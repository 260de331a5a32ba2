// What both passes on a GPU share: their state, typed pointers, layouts, and where a convolution runs.
#pragma once

#include <ATen/ATen.h>

#include "../device.h"
#include "../kernels/conv3x3.h"
#include "../kernels/node.h"
#include "../kernels/norm.h"
#include "../kernels/pointwise.h"
#include "../pass.h"
#include "conv3x3.h"

namespace advnas::cuda {

using at::Tensor;

// Rows of [channels] floats of the convolutions that run, all of a pass in one allocation: a pass has dozens, and an allocation
// takes the host as long as half a launch.
struct Rows {
  Tensor memory;
  std::vector<float*> of;  // of each convolution; null for those that have none
};

// Whose kernels run a convolution.
enum class Runner { kLibrary, kPointwise, kConv3x3 };

// What the forward pass keeps for the backward pass.
struct CudaState {
  std::vector<Runner> runners;  // of each convolution that runs
  std::vector<Tensor> relus;    // of the nodes that a convolution of the library takes through a ReLU
  Rows norm_rows;               // of each convolution with batch norm or a bias: kernels/norm.h
};

void run_forward(Pass& pass, CudaState& state);
Gradients run_backward(Pass& pass, const CudaState& state, const Tensor& dy, const Wanted& wanted);

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

template <class T>
const T* in(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <class T>
T* out(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

inline Images images_of(const Tensor& x) { return {int(x.size(0)), int(x.size(2)), int(x.size(3)), int(x.size(1))}; }

inline Tensor new_images(const Tensor& like, const ImageShape& shape) {
  return at::empty({like.size(0), shape.channels, shape.height, shape.width}, like.options(), kLayout);
}

// Channels last, at an address that 16-byte loads take.
inline Tensor in_layout(const Tensor& x) {
  Tensor dense = x.contiguous(kLayout);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone(kLayout);
}

inline Tensor floats(const Tensor& tensor) { return tensor.defined() ? tensor.to(at::kFloat).contiguous() : tensor; }

// Kernels do not run over no pixels: then nothing is left to be written, and sums are 0.
inline Tensor workspace(const Tensor& like, int64_t floats) {
  const auto options = like.options().dtype(at::kFloat);
  return like.numel() > 0 ? at::empty({floats}, options) : at::zeros({floats}, options);
}

// The sums of blocks that the last block of the same launch adds up. Launches of a pass follow one another: all take the same
// floats.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}

  float* floats(int64_t size) {
    if (!memory_.defined() || memory_.numel() < size) memory_ = workspace(like_, size);
    return out<float>(memory_);
  }

 private:
  const Tensor like_;
  Tensor memory_;
};

// What the launches of a pass count their blocks in, kCounters: 0 before each, and after it. Some for each stream, where launches
// follow one another, and kept; a graph that is being captured has its own, since it may be replayed beside other work of the
// stream.
Tensor counter(const Tensor& like, const OnDevice& device);

inline PointwiseShape pointwise_shape(int64_t batch, const ImageShape& y, const Convolution& convolution) {
  return {batch * y.height * y.width, int(convolution.weight.size(1)), int(convolution.weight.size(0))};
}
inline PointwisePrologue pointwise_prologue(const ImageShape& x, Prologue what) {
  if (what != Prologue::kMean2) return {what == Prologue::kRelu, 0, 0};
  return {false, int(x.height), int(x.width)};
}

// Whether the output of a convolution is what arrives, but for the gate.
inline bool is_plain(const Convolution& convolution) {
  return convolution.statistics == Statistics::kNone && !convolution.bias.defined();
}

// `num` rows for each convolution that runs, or for those alone that are not plain.
inline Rows make_rows(const Pass& pass, const Tensor& like, int64_t num, bool plain_too) {
  constexpr int64_t kAlign = 64;  // floats, where an allocation of its own would begin
  Rows rows{{}, std::vector<float*>(pass.convolutions.size())};
  std::vector<int64_t> places(pass.convolutions.size(), -1);
  int64_t size = 0;
  for (const auto& terms : pass.plan.into) {
    for (const Term& term : terms) {
      if (term.convolution < 0 || (!plain_too && is_plain(pass.convolutions[term.convolution]))) continue;
      places[term.convolution] = size;
      size += (num * pass.shapes[term.target].channels + kAlign - 1) / kAlign * kAlign;
    }
  }
  rows.memory = workspace(like, size);
  for (size_t k = 0; k < places.size(); ++k) {
    if (places[k] >= 0) rows.of[k] = out<float>(rows.memory) + places[k];
  }
  return rows;
}

inline Conv3x3Shape conv3x3_shape(int64_t batch, const ImageShape& y, const Convolution& convolution) {
  return {int(batch), int(y.height), int(y.width), int(convolution.weight.size(1)), int(convolution.weight.size(0))};
}

// Whether our own 3x3 convolution is asked for, and may run in this type on this device.
template <class T>
bool conv3x3_is_on() {
  return uses_own_conv3x3() && (sizeof(T) == 2 || allows_tf32()) && conv3x3_runs_here();
}

// y: of the convolution's output.
template <class T>
Runner runner_of(const Convolution& convolution, const Piece& piece, int64_t batch, const ImageShape& y, bool has_conv3x3) {
  const Tensor& weight = convolution.weight;
  if (convolution.depthwise.defined() || piece.stride != 1 || weight.size(2) != weight.size(3)) return Runner::kLibrary;
  if (weight.size(2) == 1) {
    return pointwise_fits<T>({0, int(weight.size(1)), int(weight.size(0))}) ? Runner::kPointwise : Runner::kLibrary;
  }
  const bool plain = weight.size(2) == 3 && piece.dilation == 1 && piece.prologue != Prologue::kMean2;
  return has_conv3x3 && plain && conv3x3_fits<T>(conv3x3_shape(batch, y, convolution)) ? Runner::kConv3x3 : Runner::kLibrary;
}

// What the library's convolution takes of a node, and the gradient back to the node's value; a ReLU's mask is applied by the
// node.
inline Tensor apply_prologue(const Tensor& node, Prologue what) {
  return what == Prologue::kMean2 ? at::avg_pool2d(node, {2, 2}, {2, 2}, {0, 0}, true, false) : node;
}
inline Tensor prologue_backward(const Tensor& gradient, const Tensor& node, Prologue what) {
  if (what != Prologue::kMean2) return gradient;
  return at::avg_pool2d_backward(gradient, node, {2, 2}, {2, 2}, {0, 0}, true, false, std::nullopt);
}

// The spatial part: the depthwise convolution where there is one, else the only one.
struct Geometry {
  std::vector<int64_t> stride, padding, dilation;

  Geometry(const Tensor& weight, const Piece& piece)
      : stride(2, piece.stride), padding(2, weight.size(2) / 2 * piece.dilation), dilation(2, piece.dilation) {}
};
inline Geometry pointwise_geometry(const Tensor& weight) { return {weight, Piece{}}; }

}  // namespace advnas::cuda
