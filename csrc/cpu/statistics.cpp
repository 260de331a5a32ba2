#include "statistics.h"

#include <ATen/ops/lerp.h>

#include <algorithm>
#include <cmath>

#include "../kernels/cpu/isa.h"

namespace advnas {
namespace {

using at::Tensor;

void update(const Tensor& running, const Row& current, double momentum) {
  running.lerp_(tensor_of(current).to(running.scalar_type()), momentum);
}

}  // namespace

Row sum_images(const Row& rows, int64_t width) {
  Row sum(width);
  if (width > 0) cpu::kernels<double>().add_images(rows.data(), int64_t(rows.size()) / width, width, sum.data());
  return sum;
}

NormState parameters_of(const Normalisation& norm, int64_t channels) {
  const auto row_or = [&](const Tensor& tensor, double value) {
    return tensor.defined() ? row_of(tensor) : Row(channels, value);
  };
  return {row_or(norm.bias, 0), row_or(norm.gamma, 1), row_or(norm.beta, 0), {}, {}};
}

void take_fixed_statistics(const Normalisation& norm, NormState& state, double eps) {
  const size_t channels = state.bias.size();
  state.mean.assign(channels, 0);
  state.rstd.assign(channels, 1);
  if (norm.statistics == Statistics::kRunning) {
    state.mean = row_of(norm.running_mean);
    state.rstd = row_of(norm.running_var);
    for (double& v : state.rstd) v = 1 / std::sqrt(v + eps);
  }
  for (size_t c = 0; c < channels; ++c) state.mean[c] -= state.bias[c];
}

void take_batch_statistics(const Normalisation& norm, NormState& state, const Moments& moments, int64_t images, int64_t pixels,
                           double eps, double momentum) {
  const int64_t channels = int64_t(state.bias.size()), count = images * pixels;
  Row mean(channels), variance(channels);
  cpu::kernels<double>().join_moments(moments.mean.data(), moments.m2.data(), images, pixels, channels, mean.data(),
                                      variance.data());
  state.mean = mean;
  state.rstd = variance;
  for (double& v : state.rstd) v = 1 / std::sqrt(v + eps);
  if (norm.batches_tracked.defined()) norm.batches_tracked.add_(1);
  if (!norm.running_mean.defined() || count == 0) return;
  const int64_t batches = norm.batches_tracked.defined() ? norm.batches_tracked.item<int64_t>() : 0;
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] += state.bias[c];
    variance[c] *= double(count) / double(count - 1);
  }
  const double part = momentum_of_batch(momentum, batches);
  update(norm.running_mean, mean, part);
  update(norm.running_var, variance, part);
}

NormGradients gradients_of(Statistics statistics, const NormState& state, double gate, const double* s1, const double* s2,
                           int64_t count) {
  const auto& [bias, gammas, betas, means, rstds] = state;
  const size_t channels = means.size();
  const bool fixed = statistics != Statistics::kBatch;
  NormGradients gradients{{Row(channels), Row(channels), Row(channels)}, Row(channels), Row(channels), Row(channels), 0};
  for (size_t c = 0; c < channels; ++c) {
    const double gamma = gammas[c], rstd = rstds[c], scale = gate * gamma * rstd;
    const NormGradient<double> map =
        fixed ? NormGradient<double>{scale, 0, 0}
              : batch_norm_backward(scale, means[c], rstd, s1[c], s2[c], double(std::max<int64_t>(1, count)));
    gradients.input.of_dy[c] = map.of_dy;
    gradients.input.of_z[c] = map.of_z;
    gradients.input.constant[c] = map.constant;
    gradients.dgamma[c] = gate * rstd * s2[c];
    gradients.dbeta[c] = gate * s1[c];
    gradients.dbias[c] = scale * s1[c];
    gradients.dgate += gamma * rstd * s2[c] + betas[c] * s1[c];
  }
  return gradients;
}

}  // namespace advnas
