// The last stage of batch norm's sums, for the kernels that take them on the way; the last block of a launch runs it.
#pragma once

#include "../batch_norm_math.h"
#include "../norm.h"
#include "device.cuh"

namespace advnas::cuda {
namespace {

__device__ inline float at_or(const float* row, int at, float otherwise) { return row != nullptr ? row[at] : otherwise; }

__device__ inline void write_rows(const NormForward& norm, int channels, int c, float mean, float rstd) {
  const ScaleShift<double> map = batch_norm_forward(norm.gate, at_or(norm.gamma, c, 1), at_or(norm.beta, c, 0), mean, rstd);
  norm.rows[kMean * channels + c] = mean;
  norm.rows[kRstd * channels + c] = rstd;
  norm.rows[kScale * channels + c] = float(map.scale);
  norm.rows[kShift * channels + c] = float(map.shift);
}

// A block's part of the statistics: how many values a channel, [channels] their mean, [channels] their squared distances from it.
__device__ inline float* statistics_of_block(float* partial, int block, int channels) {
  return partial + int64_t(block) * (1 + 2 * channels);
}

// Joins them. Means are taken as distances from the first, so that nothing cancels where the mean is large beside the spread.
// memory: a float of shared memory for each thread.
__device__ inline void finish_statistics(const NormForward& norm, const float* partial, int blocks, int channels, float* memory) {
  const int stride = 1 + 2 * channels;
  const int64_t batches = norm.batches_tracked != nullptr ? 1 + *norm.batches_tracked : 0;
  const float momentum = float(momentum_of_batch(norm.momentum, batches));
  for (int first = 0; first < channels; first += int(blockDim.x)) {
    const Shares shares(min(channels - first, int(blockDim.x)));
    const int c = first + shares.column, end = shares.active() ? blocks : 0;
    const float origin = __ldcg(partial + 1 + c);
    float count = 0, moved = 0, m2 = 0;
#pragma unroll 4
    for (int b = shares.part; b < end; b += shares.parts) {
      const float* const of_block = partial + int64_t(b) * stride;
      const float n = __ldcg(of_block);
      count += n;
      moved += n * (__ldcg(of_block + 1 + c) - origin);
    }
    count = shares.add(count, memory);
    const float distance = shares.add(moved, memory) / count;
#pragma unroll 4
    for (int b = shares.part; b < end; b += shares.parts) {
      const float* const of_block = partial + int64_t(b) * stride;
      const float from_mean = __ldcg(of_block + 1 + c) - origin - distance;
      m2 += __ldcg(of_block + 1 + channels + c) + __ldcg(of_block) * from_mean * from_mean;
    }
    m2 = shares.add(m2, memory);
    if (shares.part > 0) continue;
    const float mean = origin + distance, variance = m2 / count;
    write_rows(norm, channels, c, mean, 1 / sqrtf(variance + norm.eps));
    if (norm.running_mean == nullptr) continue;
    norm.running_mean[c] += momentum * (mean + at_or(norm.bias, c, 0) - norm.running_mean[c]);
    norm.running_var[c] += momentum * (m2 / (count - 1) - norm.running_var[c]);
  }
  // All have read it, before the sums.
  if (threadIdx.x == 0 && norm.batches_tracked != nullptr) *norm.batches_tracked = batches;
}

// What the backward pass needs of one channel, from its two sums. Returns its part of the gate's gradient.
template <class T>
__device__ inline float finish_channel(const NormBackward<T>& norm, int channels, int c, float s1, float s2, double count) {
  const float gamma = at_or(norm.gamma, c, 1);
  const float mean = at_or(norm.rows, kMean * channels + c, 0), rstd = at_or(norm.rows, kRstd * channels + c, 1);
  const float scale = norm.gate * gamma * rstd;
  const NormGradient<double> map =
      norm.of_batch ? batch_norm_backward(scale, mean, rstd, s1, s2, count) : NormGradient<double>{scale, 0, 0};
  norm.gradient[kOfDy * channels + c] = float(map.of_dy);
  norm.gradient[kOfZ * channels + c] = float(map.of_z);
  norm.gradient[kConstant * channels + c] = float(map.constant);
  if (norm.dgamma != nullptr) norm.dgamma[c] = norm.gate * rstd * s2;
  if (norm.dbeta != nullptr) norm.dbeta[c] = norm.gate * s1;
  if (norm.dbias != nullptr) norm.dbias[c] = scale * s1;
  return gamma * rstd * s2 + at_or(norm.beta, c, 0) * s1;
}

// partial: of each block, `size` floats apart, s1 [channels] and then s2 [channels] of each convolution. memory: as above.
template <class T>
__device__ void finish_sums(const NormBackward<T>* norms, int num, const float* partial, int size, int blocks,
                            const Images& shape, float* total, float* memory) {
  const int channels = shape.channels;
  const double count = double(shape.pixels());
  float all = 0;
  for (int first = 0; first < channels; first += int(blockDim.x)) {
    const Shares shares(min(channels - first, int(blockDim.x)));
    const int c = first + shares.column;
    const float s1 = shares.add_column(partial + c, size, blocks, memory);
    if (shares.part == 0) all += s1;
    for (int j = 0; j < num; ++j) {
      const float s2 = shares.add_column(partial + (1 + j) * channels + c, size, blocks, memory);
      const float of_gate = shares.part == 0 ? finish_channel(norms[j], channels, c, s1, s2, count) : 0;
      if (norms[j].gate_grad == nullptr) continue;
      const float sum = sum_block(of_gate);
      if (threadIdx.x == 0) *norms[j].gate_grad += sum;
    }
  }
  if (total == nullptr) return;
  all = sum_block(all);
  if (threadIdx.x == 0) *total = all;
}

}  // namespace
}  // namespace advnas::cuda
