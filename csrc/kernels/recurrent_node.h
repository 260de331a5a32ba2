// What happens at one node of a recurrent cell, behind the matrix products. With s_k the state of source k, d = scale ds:
//
//   (c_k, u_k) = s_k W_k                   the product, not made here; only c_k where no operation is picked
//   y_k = sum_f g_kf f(u_k)                over the picked operations f
//   forward    s = scale sum_k (a_k s_k + sigmoid(c_k) (y_k - a_k s_k))
//   backward   du_k = d sigmoid(c_k) sum_f g_kf f'(u_k)
//              dc_k = d sigmoid(c_k) (1 - sigmoid(c_k)) (y_k - a_k s_k)
//              ds_k += d (1 - sigmoid(c_k)) a_k
//
// In AdvantageNAS's cell (Sato et al. 2021) a gate stands inside its edge's highway connection, in that of DARTS (Liu et al.
// 2019) it multiplies the whole edge. A constant is an operation's output in the first, an edge's in the second.
//
//   inside     a_k = 1,           dg_kf = <d, sigmoid(c_k) f(u_k)>,                      d constant_k = <d, sigmoid(c_k)>
//   whole      a_k = sum_f g_kf,  dg_kf = <d, s_k + sigmoid(c_k) (f(u_k) - s_k)>,        d constant_k = <d, 1>
//
// What flows back through the product, ds_k += dpre_k W_k^T, is not made here either.
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
  int64_t column;   // where c_k begins in a row of pre; u_k, if any is picked, is `units` behind it
  G gate[kNumRecurrentOps];
  G carry;                          // a_k
  int32_t place[kNumRecurrentOps];  // of each picked operation's dg among the sums
  int32_t constant;                 // of d constant_k among the sums, where gates are inside
};

template <class G>
struct RecurrentNode {
  int64_t batch, units;
  int64_t state_stride;  // elements from a state to the next one
  int64_t pre_stride;    // elements from a row of pre to the next one
  G scale;
  bool whole;  // whether a gate multiplies the whole edge
  int32_t num_sources;
  int32_t constant, num_edges;  // where gates multiply whole edges: places of d constant of all edges, `none` or not
  RecurrentSource<G> source[kMaxRecurrentSources];
};

// states: `num` of [batch, units], state_stride apart. pre: [batch, pre_stride]. out: [batch, units], written.
// CPU kernels work on the rows [begin, end) of the batch in one thread.
template <class T>
using RecurrentForward = void(const RecurrentNode<T>& node, const T* states, const T* pre, T* out, int64_t begin, int64_t end);
// dout: [batch, units]. dstates: [num, batch, units], added to. dpre: as pre, written; it may be pre. sums: added to; null if not
// wanted.
template <class T>
using RecurrentBackward = void(const RecurrentNode<T>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                               double* sums, int64_t begin, int64_t end);
// out [size] = the mean of `num` arrays, `stride` apart.
template <class T>
using RecurrentMean = void(const T* states, int64_t num, int64_t stride, T* out, int64_t size);
// The mean's backward pass: each of `num` arrays of dstates [size], `stride` apart, = (dh + dout) / num.
template <class T>
using RecurrentMeanBackward = void(const T* dh, const T* dout, int64_t num, int64_t stride, T* dstates, int64_t size);
// out [size] = a b, or += with `add`.
template <class T>
using RecurrentMask = void(const T* a, const T* b, bool add, T* out, int64_t size);

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
