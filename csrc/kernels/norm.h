// Batch norm on CUDA: statistics of a convolution's output z, and the two maps that they make. Formulas: batch_norm_math.h.
#pragma once

#include "channels_last.h"

namespace advnas::cuda {

// Counters of a launch at most: each of its parts that end by themselves counts its blocks.
inline constexpr int kCounters = 16;

// Rows of [channels] floats that the forward pass leaves for each convolution.
enum NormRow { kMean, kRstd, kScale, kShift, kNormRows };
// Rows that the backward pass leaves: dz = of_dy dy + of_z z + constant.
enum GradientRow { kOfDy, kOfZ, kConstant, kGradientRows };

// Parameters and running statistics are rows of [channels] floats; null where there are none.
struct NormForward {
  const float *gamma, *beta, *bias;  // bias: the convolution's own, which z is without
  float *running_mean, *running_var;
  int64_t* batches_tracked;
  float gate, eps, momentum;
  float* rows;  // [kNormRows, channels]
};

template <class T>
struct NormBackward {
  const T* z;
  const float *gamma, *beta;
  const float* rows;  // [kNormRows, channels]; null without batch norm: mean 0, deviation 1
  float gate;
  bool of_batch;                  // whether the statistics were those of z
  float* gradient;                // [kGradientRows, channels]
  float *dgamma, *dbeta, *dbias;  // [channels] each, or null
  float* gate_grad;               // one float, to be added to, or null
};

// Batch statistics of z, running ones updated: rows complete.
template <class T>
void norm_statistics(const T* z, const Images& shape, const NormForward& norm, float* partial, unsigned* counter, void* stream);
int64_t norm_statistics_workspace(const Images& shape);

// Rows from the running statistics; without them, of no batch norm at all (mean 0, deviation 1).
void norm_fixed(int channels, const NormForward& norm, void* stream);

// dz = of_dy dy + of_z z + constant.
template <class T>
void norm_gradient(const T* dy, const T* z, const float* gradient, T* dz, const Images& shape, void* stream);

}  // namespace advnas::cuda
