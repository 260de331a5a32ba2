// The formulas of recurrent_node.h for one element, shared by the CPU loop and the CUDA kernel. `V` is a scalar or a vector of
// them; `Math` has its sigmoid and tanh.
#pragma once

#include "host_device.h"
#include "recurrent_node.h"

namespace advnas {

template <class Math, class V>
ADVNAS_HOST_DEVICE inline V recurrent_activation(int op, V u) {
  switch (op) {
    case kRecurrentTanh:
      return Math::tanh(u);
    case kRecurrentSigmoid:
      return Math::sigmoid(u);
    case kRecurrentRelu:
      return u < V{} ? V{} : u;  // NaN stays
    default:
      return u;
  }
}

// f'(u), from f(u) alone.
template <class V>
ADVNAS_HOST_DEVICE inline V recurrent_slope(int op, V f) {
  const V one = V{} + 1;
  switch (op) {
    case kRecurrentTanh:
      return one - f * f;
    case kRecurrentSigmoid:
      return f * (one - f);
    case kRecurrentRelu:
      return f <= V{} ? V{} : one;
    default:
      return one;
  }
}

// What one picked operation gives for a gate of 1, before the scale; c: sigmoid(c_k).
template <class V>
ADVNAS_HOST_DEVICE inline V recurrent_output(bool whole, V state, V c, V f) {
  return whole ? state + c * (f - state) : c * f;
}

// A source's part of its node, before the scale; y: its sum over the picked operations.
template <class V>
ADVNAS_HOST_DEVICE inline V recurrent_highway(V carried, V c, V y) {
  return carried + c * (y - carried);
}

// The backward pass of one element of a source; d: scale ds, slope: sum_f g_kf f'(u_k), carried: a_k s_k.
template <class V>
struct RecurrentGradient {
  V d, c;

  ADVNAS_HOST_DEVICE V dc(V carried, V y) const { return d * (y - carried) * c * ((V{} + 1) - c); }
  ADVNAS_HOST_DEVICE V du(V slope) const { return d * c * slope; }
  ADVNAS_HOST_DEVICE V dstate(V carry) const { return d * carry * ((V{} + 1) - c); }
};

}  // namespace advnas
