// What happens at the nodes of a cell on CUDA, between the convolutions; kernels/cell.h has the formulas, and this is the same
// work cut as a GPU wants it: the whole batch in one launch, per-channel coefficients and sums in device memory.
//
//   forward    y = start + sum_k map_k(source_k),      relu = max(y, 0)
//   backward   dx = start + sum_k map_k(source_k),     and from it, in the same pass over memory,
//              dgate_k = <source_k as it arrives, x>   for skip connections and pooled edges
//              s1 = sum dx,  s2_j = sum dx (z_j - mean_j)   for the convolutions that arrive at the node
//
// Forward, sources are nodes (skip, pooled) and convolution outputs (batch norm and gate as scale and shift). Backward, sources
// are the gradients of the nodes that this one feeds (skip; pooled: the transpose of the pooling), and what convolutions give
// back (masked where a ReLU came before: only where x > 0; spread where the mean of 2x2 pixels did). The last block to end turns
// s1 and s2 into what batch norm's backward pass, its parameters and the gates need (batch_norm_math.h), so that no sum crosses
// to the host.
#pragma once

#include "channels_last.h"
#include "norm.h"

namespace advnas::cuda {

enum class Arrival { kDirect, kPooled, kMasked, kHalved };

template <class T>
struct NodeSource {
  const T* data;  // [batch, height, width, channels]; of the halved image if it is kHalved
  Arrival arrival;
  float gate;                // of direct and pooled sources
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
  const T* x;      // the node's value or its ReLU; read for masks and gates only
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

}  // namespace advnas::cuda
