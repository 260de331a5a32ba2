// What happens at one node of a recurrent cell, behind the matrix products (Liu et al. 2019, DARTS's recurrent space).
//
//   pre_k = (c_k, u_k) = s_k W             the product, not made here: [batch, 2 units] for each of the node's sources
//   y_kf = s_k + sigmoid(c_k) (f(u_k) - s_k)
//   forward    s = sum_k sum_f g_kf y_kf    over the picked operations f of each source k
//   backward   dg_kf = <ds, y_kf>           the advantage of an edge at a gate of 1
//              du_k = ds sigmoid(c_k) sum_f g_kf f'(u_k)
//              dc_k = ds sigmoid(c_k) (1 - sigmoid(c_k)) sum_f g_kf (f(u_k) - s_k)
//              ds_k += ds (1 - sigmoid(c_k)) sum_f g_kf
//
// What flows back through the product, ds_k += dpre_k W^T, is not made here either.
#pragma once

#include <cstdint>

namespace advnas {

// The operations that run; `none` does not.
enum RecurrentOp : int32_t { kRecurrentIdentity, kRecurrentTanh, kRecurrentSigmoid, kRecurrentRelu, kNumRecurrentOps };

// A node goes to a CUDA kernel by value, and kernel arguments end at 4 KiB.
inline constexpr int kMaxRecurrentSources = 64;

template <class G>
struct RecurrentSource {
  int32_t state;    // its place among the states
  uint32_t picked;  // bit `op`: whether the operation is picked
  G gate[kNumRecurrentOps];
};

template <class G>
struct RecurrentNode {
  int64_t batch, units;
  int32_t num_sources;
  RecurrentSource<G> source[kMaxRecurrentSources];
};

// Sums that a backward pass gives: dg [num_sources, kNumRecurrentOps], then the sum of ds, the gradient of a constant added to s.
template <class G>
inline int64_t num_recurrent_sums(const RecurrentNode<G>& node) {
  return int64_t(node.num_sources) * kNumRecurrentOps + 1;
}

// states: [any number, batch, units]. pre: [num_sources, batch, 2 units], c then u in each row. out: [batch, units], written.
// CPU kernels work on the rows [begin, end) of the batch in one thread.
template <class T>
using RecurrentForward = void(const RecurrentNode<T>& node, const T* states, const T* pre, T* out, int64_t begin, int64_t end);
// dout: [batch, units]. dstates: as states, added to. dpre: as pre, written. sums: [num_recurrent_sums], added to; null if not
// wanted.
template <class T>
using RecurrentBackward = void(const RecurrentNode<T>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                               double* sums, int64_t begin, int64_t end);

namespace cuda {

// Blocks of the first stage of the sums, for each source.
inline constexpr int kRecurrentBlocks = 256;
// Partial sums, in floats, that recurrent_backward needs where sums are wanted.
inline int64_t recurrent_workspace(const RecurrentNode<float>& node) {
  return int64_t(node.num_sources > 0 ? node.num_sources : 1) * (kNumRecurrentOps + 1) * kRecurrentBlocks;
}

// T: float, __half or __nv_bfloat16; sums are in float, and the totals over all calls in double. `stream` is a cudaStream_t.
template <class T>
void recurrent_forward(const RecurrentNode<float>& node, const T* states, const T* pre, T* out, void* stream);
// sums: on the device; null, and workspace with it, if not wanted.
template <class T>
void recurrent_backward(const RecurrentNode<float>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                        double* sums, float* workspace, void* stream);

}  // namespace cuda
}  // namespace advnas
