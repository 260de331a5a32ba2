// A 3x3 convolution on CUDA with stride 1 and a border of one zero pixel, as a product on tensor cores, with what is around it in
// the same pass over memory.
//
//   forward          z[h, w, o]  = sum_{r, s, i} relu(x)[h + r - 1, w + s - 1, i] weight[o, r, s, i], and the batch statistics of
//   z input gradient   dp[h, w, i] = sum_{r, s, o} dz[h + 1 - r, w + 1 - s, o] weight[o, r, s, i] weight gradient  dweight[o, r,
//   s, i] = sum_{h, w} dz[h, w, o] relu(x)[h + r - 1, w + s - 1, i]
//
// dz = of_dy dy + of_z z + constant (norm.h). dp is the gradient of relu(x); the node that gathers it applies the mask. float32
// is rounded to TF32 where it enters a product; sums are float32.
#pragma once

#include "norm.h"

namespace advnas::cuda {

// The images lie one after another as rows of width + 1 positions and blocks of height + 1 rows: the position after a row is the
// zero to its right and to the left of the next one, the row after an image the one below it and above the next. So every
// neighbour of a pixel is a fixed number of positions away.
struct Conv3x3Shape {
  int batch, height, width, in, out;

  ADVNAS_HOST_DEVICE int pitch() const { return width + 1; }
  ADVNAS_HOST_DEVICE int64_t positions() const { return int64_t(batch) * (height + 1) * pitch(); }
  int64_t pixels() const { return int64_t(batch) * height * width; }
};

// Whether these sizes can be run; elsewhere a convolution of the library does the work.
template <class T>
bool conv3x3_fits(const Conv3x3Shape& shape);

// Whether the current device has the tensor cores for it.
bool conv3x3_runs_here();

template <class T>
struct Conv3x3Forward {
  Conv3x3Shape shape;
  const T *x, *weight;
  bool relu;
  T* z;
  bool of_batch;  // whether norm's statistics are those of z
  NormForward norm;
  float* partial;     // conv3x3_statistics_workspace floats
  unsigned* counter;  // 0, and 0 afterwards
};

template <class T>
struct Conv3x3Input {
  Conv3x3Shape shape;
  const T *dy, *z;
  const float* gradient;  // [kGradientRows, out]
  const T* weight;
  T* dp;
};

template <class T>
struct Conv3x3Weight {
  Conv3x3Shape shape;
  const T *dy, *z;
  const float* gradient;  // [kGradientRows, out]
  const T* x;
  bool relu;
  T* dweight;
  float* partial;  // conv3x3_weight_workspace floats
};

template <class T>
void conv3x3_forward(const Conv3x3Forward<T>& convolution, void* stream);
template <class T>
void conv3x3_input(const Conv3x3Input<T>& convolution, void* stream);
template <class T>
void conv3x3_weight(const Conv3x3Weight<T>& convolution, void* stream);

int64_t conv3x3_statistics_workspace(const Conv3x3Shape& shape);
template <class T>
int64_t conv3x3_weight_workspace(const Conv3x3Shape& shape);

}  // namespace advnas::cuda
