// Batch norm: statistics of a convolution's output z, and the sums of its backward pass. Formulas: batch_norm_math.h.
#pragma once

#include <cstdint>

#include "channels_last.h"

namespace advnas {

// On the host, of one image; serially.

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

namespace cuda {

// Counters of a launch at most: each of its parts that end by themselves counts its blocks.
inline constexpr int kCounters = 16;

// Rows of [channels] floats that the forward pass leaves for each convolution.
enum NormRow { kMean, kRstd, kScale, kShift, kNormRows };
// Rows that the backward pass leaves: those of NormGradient.
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

}  // namespace cuda
}  // namespace advnas
