// What happens at the nodes of a cell, between the convolutions, for one image.
//
//   forward    y = bias + sum_k scale_k * scaled_k + sum_p gate_p * avg_pool_3x3(pooled_p)
//   backward   dx = sum_k scale_k * scaled_k + sum_p gate_p * avg_pool_3x3^T(pooled_p)
//
// Forward, node y gathers its incoming edges: `scaled` are sources of skip connections (scale = the gate) and convolution outputs
// (scale and bias = gate and batch norm, batch_norm_math.h), `pooled` are sources of pooled edges. Backward, node x gathers from
// its outgoing edges: `scaled` and `pooled` are the gradients of the nodes that it feeds; the convolutions add theirs afterwards
// (convolution.h). The same pass gives the gate gradients <dy, x> and <avg_pool^T(dy), x>.
//
// Arrays are images in channels-last order, [height * width, channels]. Every kernel is serial; the caller runs the images of a
// batch in parallel and adds what they return in the order of the images, so that sums do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace advnas {

struct ImageShape {
  int64_t height, width, channels;
};

template <class T>
struct Sources {
  const T* const* scaled;  // [num_scaled] images
  const T* const* scale;   // [num_scaled] rows of [channels]
  int64_t num_scaled;
  const T* const* pooled;  // [num_pooled] images
  const T* pooled_gate;    // [num_pooled]
  int64_t num_pooled;
};

// bias: [channels]. row: workspace of pool_workspace(shape) elements.
template <class T>
using NodeForward = void(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* row);

// x: the node's value; may be null if no gate gradient is wanted.
// scaled_gate_grad [num_scaled], pooled_gate_grad [num_pooled]: sum dy x; null if not wanted.
template <class T>
using NodeBackward = void(const Sources<T>& sources, const T* x, T* dx, double* scaled_gate_grad, double* pooled_gate_grad,
                          const ImageShape& shape, T* row);

// mean [channels] and m2 [channels], the sum of squared distances from it, over the pixels of one image.
template <class T>
using ChannelMoments = void(const T* z, int64_t pixels, int64_t channels, double* mean, double* m2);

// s1 [channels] = sum dy. For each of `num` convolution outputs, s2[k] [channels] = sum dy (z_k - mean_k), mean[k] [channels].
template <class T>
using NodeSums = void(const T* dy, const T* const* z, const T* const* mean, int64_t num, int64_t pixels, int64_t channels,
                      double* s1, double* const* s2);

// Elements of workspace that a pooled source needs.
inline int64_t pool_workspace(const ImageShape& shape) { return 2 * (shape.width + 2) * shape.channels; }

}  // namespace advnas
