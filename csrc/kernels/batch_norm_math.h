// Batch norm as per-channel coefficients, shared by the CPU and the CUDA side.
//
//   z_hat = (z - mean) rstd,    y = gamma z_hat + beta,    rstd = 1 / sqrt(var + eps),    var = m2 / count
//
// Forward, gated:   g y = scale z + shift                with scale = g gamma rstd,  shift = g (beta - gamma rstd mean)
// Backward of batch statistics, with s1 = sum dy and s2 = sum dy (z - mean) over the `count` values of the channel:
//   dz = scale (dy - s1 / count - (z - mean) rstd^2 s2 / count)  =  a dy + b z + c
//   dgamma = g rstd s2,   dbeta = g s1,   dg = sum over channels of gamma rstd s2 + beta s1
// Of running statistics, which do not depend on z:  dz = scale dy.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advnas {

// The momentum of running statistics that are the mean over all batches so far.
inline constexpr double kCumulative = -1;

// How much of a batch's statistics goes into the running ones. batches: how many were seen, this one included; 0: nobody counts.
ADVNAS_HOST_DEVICE inline double momentum_of_batch(double momentum, int64_t batches) {
  if (momentum != kCumulative) return momentum;
  return batches > 0 ? 1 / double(batches) : 0;
}

// y = scale z + shift. V: the value of one channel, or a row of [channels].
template <class V>
struct ScaleShift {
  V scale, shift;
};

ADVNAS_HOST_DEVICE inline ScaleShift<double> batch_norm_forward(double gate, double gamma, double beta, double mean,
                                                                double rstd) {
  return {gate * gamma * rstd, gate * (beta - gamma * rstd * mean)};
}

// dz = of_dy dy + of_z z + constant.
template <class V>
struct NormGradient {
  V of_dy, of_z, constant;
};

ADVNAS_HOST_DEVICE inline NormGradient<double> batch_norm_backward(double scale, double mean, double rstd, double s1, double s2,
                                                                   double count) {
  const double slope = -scale * rstd * rstd * s2 / count;
  return {scale, slope, -scale * s1 / count - slope * mean};
}

}  // namespace advnas
