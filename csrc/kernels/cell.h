// What happens at the nodes of a cell, between the convolutions, for one image.
//
//   forward    y = bias + sum_k scale_k source_k,         a pooled source is avg_pool_3x3(image), the others the image itself
//   backward   dx = sum_k scale_k source_k,               a pooled source is avg_pool_3x3^T(image)
//
// Forward, node y gathers its incoming edges: sources are the nodes of skip connections and of pooled edges (scale = the gate)
// and convolution outputs (scale and bias = gate and batch norm, batch_norm_math.h). Backward, node x gathers from its outgoing
// edges: sources are the gradients of the nodes that it feeds; the convolutions add theirs afterwards (convolution.h). The same
// pass gives the gate gradients <source, x>.
//
// Arrays are images in channels-last order, [height * width, channels]. Every kernel is serial; the caller runs the images of a
// batch in parallel and adds what they return in the order of the images, so that sums do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advnas {

struct ImageShape {
  int64_t height, width, channels;
};

template <class T>
struct Sources {
  int64_t num;
  const T* const* image;  // [num]
  const T* const* scale;  // [num] rows of [channels]
  const bool* pooled;     // [num]
};

// bias: [channels]. workspace: node_workspace elements.
template <class T>
using NodeForward = void(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* workspace);

// gate_grad [num] += sum source x; null if not wanted, then x, the node's value, may be null too.
template <class T>
using NodeBackward = void(const Sources<T>& sources, const T* x, T* dx, double* gate_grad, const ImageShape& shape, T* workspace);

// mean [channels] and m2 [channels], the sum of squared distances from it, over the pixels of one image.
template <class T>
using ChannelMoments = void(const T* z, int64_t pixels, int64_t channels, double* mean, double* m2);

// s1 [channels] = sum dy. For each of `num` convolution outputs, s2[k] [channels] = sum dy (z_k - mean_k), mean[k] [channels].
template <class T>
using NodeSums = void(const T* dy, const T* const* z, const T* const* mean, int64_t num, int64_t pixels, int64_t channels,
                      double* s1, double* const* s2);

// Mean and (biased) variance [channels] of a batch from the moments of its images [images, channels], by the rule of Chan, Golub
// and LeVeque (1983): exact where the mean is large beside the spread.
template <class T>
using JoinMoments = void(const double* means, const double* m2s, int64_t images, int64_t pixels, int64_t channels, double* mean,
                         double* variance);

// sum [width] of rows [images, width], in the order of the images.
template <class T>
using AddImages = void(const double* rows, int64_t images, int64_t width, double* sum);

ADVNAS_HOST_DEVICE inline int64_t node_workspace(const ImageShape& shape, int64_t num_sources) {
  return num_sources * shape.width * shape.channels;
}

}  // namespace advnas
