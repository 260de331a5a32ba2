// What happens at the nodes of a cell, between the convolutions.
//
//   forward    y = bias + sum_k scale_k arrive_k(source_k)
//   backward   dx = sum_k scale_k arrive_k^T(source_k),      dgate_k = <arrive_k^T(source_k), x>
//
// arrive_k: arrival.h. Forward, node y gathers its incoming edges: sources are the nodes of skip connections and of pooled edges
// (scale = the gate) and convolution outputs (scale and bias = gate and batch norm, batch_norm_math.h). Backward, node x gathers
// from its outgoing edges: sources are the gradients of the nodes that it feeds.
#pragma once

#include <cstdint>

#include "arrival.h"
#include "channels_last.h"
#include "host_device.h"
#include "image_shape.h"
#include "norm.h"

namespace advnas {

// On the host: one image, serially; the caller runs the images of a batch in parallel and adds what they return in the order of
// the images, so that sums do not depend on the number of threads. The convolutions add their gradients afterwards
// (convolution.h).
template <class T>
struct Sources {
  int64_t num;
  const T* const* image;   // [num]
  const T* const* scale;   // [num] rows of [channels]
  const Arrival* arrival;  // [num]
};

// bias: [channels]. workspace: node_workspace elements.
template <class T>
using GatherForward = void(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* workspace);

// gate_grad [num] += sum arrive^T(source) x, or null. x, the node's value, may be null if that is and no arrival's gradient reads
// it.
template <class T>
using GatherBackward = void(const Sources<T>& sources, const T* x, T* dx, double* gate_grad, const ImageShape& shape,
                            T* workspace);

ADVNAS_HOST_DEVICE inline int64_t node_workspace(const ImageShape& shape, int64_t num_sources) {
  return num_sources * shape.width * shape.channels;
}

namespace cuda {

// On CUDA: the whole batch in one launch, per-channel coefficients and sums in device memory, and in the same pass over memory
//
//   forward    relu = max(y, 0)
//   backward   s1 = sum dx,  s2_j = sum dx (z_j - mean_j)   for the convolutions that arrive at the node
//
// Both start from what an earlier launch has left, if one did. Sources of a backward pass are also what convolutions give back.
// The last block to end turns s1 and s2 into what batch norm's backward pass, its parameters and the gates need
// (batch_norm_math.h), so that no sum crosses to the host.
template <class T>
struct NodeSource {
  const T* data;  // [batch, height, width, channels]; of the halved image if it is kHalved
  Arrival arrival;
  float gate;                // not of what convolutions give back
  const float* scale_shift;  // [2, channels] in place of the gate, or null; forward only
  float* gate_grad;          // one float, to be added to, or null; backward only
};

inline constexpr int kMaxSources = 12, kMaxSums = 3;  // of one launch; the caller makes several with `start`

template <class T>
struct NodeForward {
  Images shape;
  const T* start;  // or null
  T *y, *relu;     // either may be null
  int num;
  NodeSource<T> source[kMaxSources];
};

template <class T>
struct NodeBackward {
  Images shape;
  const T* start;  // or null
  T* dx;           // null: the gradient is not wanted, only the gates' or the sums
  const T* x;      // the node's value, or its ReLU for masks alone; read for masks, gates and arrivals whose gradient reads it
  int num;
  NodeSource<T> source[kMaxSources];
  int num_sums;
  NormBackward<T> sum[kMaxSums];
  float* total;       // sum of dx over everything, or null
  float* partial;     // node_backward_workspace floats
  unsigned* counter;  // 0, and 0 afterwards
};

// T: float, __half or __nv_bfloat16, 16-byte aligned; sums are in float within a block, in double across blocks.
template <class T>
void node_forward(const NodeForward<T>& node, void* stream);
template <class T>
void node_backward(const NodeBackward<T>& node, void* stream);

int64_t node_backward_workspace(const Images& shape);

}  // namespace cuda
}  // namespace advnas
