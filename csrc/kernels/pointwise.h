// A 1x1 convolution on CUDA as a matrix product over pixels, with everything around it in the same pass over memory.
//
//   forward    z[p, o] = sum_i prologue(x)[p, i] weight[o, i], and the batch statistics of z (norm.h)
//   backward   dz = of_dy dy + of_z z + constant,    dp[p, i] = sum_o dz[p, o] weight[o, i],
//              dweight[o, i] = sum_p dz[p, o] prologue(x)[p, i]
//
// prologue is ReLU, the mean of 2x2 pixels (pool_math.h), or nothing. dp is the gradient of prologue(x); the node that gathers it
// applies the mask, or spreads it.
#pragma once

#include "norm.h"

namespace advnas::cuda {

struct PointwiseShape {
  int64_t pixels;  // of z
  int in, out;
};

// What comes prologue. height, width: of the images of x where it is the mean, else 0.
struct PointwisePrologue {
  bool relu;
  int height, width;
};

// Whether the channels fit in shared memory; elsewhere a convolution of the library does the work.
template <class T>
bool pointwise_fits(const PointwiseShape& shape);

template <class T>
struct PointwiseForward {
  PointwiseShape shape;
  const T *x, *weight;
  PointwisePrologue prologue;
  T* z;
  bool of_batch;  // whether norm's statistics are those of z
  NormForward norm;
  float* partial;     // pointwise_statistics_workspace floats
  unsigned* counter;  // 0, and 0 afterwards
};

template <class T>
struct PointwiseBackward {
  PointwiseShape shape;
  const T *dy, *z;
  const float* gradient;  // [kGradientRows, out]
  const T *x, *weight;
  PointwisePrologue prologue;
  T* dp;              // or null
  T* dweight;         // or null
  float* partial;     // pointwise_gradient_workspace floats if dweight is wanted
  unsigned* counter;  // kCounters of them, 0, and 0 afterwards
};

template <class T>
void pointwise_forward(const PointwiseForward<T>& convolution, void* stream);
template <class T>
void pointwise_backward(const PointwiseBackward<T>& convolution, void* stream);

int64_t pointwise_statistics_workspace(const PointwiseShape& shape);
int64_t pointwise_gradient_workspace(const PointwiseShape& shape);

}  // namespace advnas::cuda
