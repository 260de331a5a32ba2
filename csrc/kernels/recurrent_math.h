// The formulas of recurrent.h for one element, shared by the CPU loop and the CUDA kernel. `V` is a scalar or a vector of them;
// `Math` has its sigmoid and tanh.
#pragma once

#include "host_device.h"
#include "recurrent.h"

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

// y of one picked operation; c: sigmoid(c_k).
template <class V>
ADVNAS_HOST_DEVICE inline V recurrent_output(V state, V c, V f) {
  return state + c * (f - state);
}

// The backward pass of one element of a source, an operation at a time.
template <class V>
struct RecurrentGradient {
  V of_c, of_f, of_y;  // start at 0

  // dout: g_kf ds.
  ADVNAS_HOST_DEVICE void add(V dout, V state, V f, V slope) {
    of_c += dout * (f - state);
    of_f += dout * slope;
    of_y += dout;
  }
  ADVNAS_HOST_DEVICE V dc(V c) const { return of_c * c * ((V{} + 1) - c); }
  ADVNAS_HOST_DEVICE V du(V c) const { return of_f * c; }
  ADVNAS_HOST_DEVICE V dstate(V c) const { return of_y * ((V{} + 1) - c); }
};

}  // namespace advnas
