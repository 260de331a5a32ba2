// Batch norm on the host: its statistics from those of every image, its gradients from sums over its output's. Formulas:
// kernels/batch_norm_math.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/batch_norm_math.h"

namespace advnas {

using Row = std::vector<double>;  // a value a channel

enum class Statistics { kBatch, kRunning, kNone };

// Of one convolution on the host: parameters, and the statistics of its output without its bias.
struct Rows {
  Row bias, gamma, beta, mean, rstd;
};

// Tensors are undefined where there are none.
struct Normalisation {
  at::Tensor bias;  // of the convolution before
  at::Tensor gamma, beta;
  at::Tensor running_mean, running_var, batches_tracked;
  Statistics statistics = Statistics::kNone;
  // The forward pass leaves these for the backward pass: on the host, or on the device.
  Rows rows;
  at::Tensor device_rows;  // kernels/norm.h
};

// Refuses rows of another length than `channels` or elsewhere than on `device`.
void check_rows(const Normalisation& norm, int64_t channels, at::Device device);

void take_parameters(Normalisation& norm, int64_t channels);

// Statistics that do not come from the batch; without batch norm the mean is 0 and the deviation 1.
void take_fixed_statistics(Normalisation& norm, double eps);

// Of each image, [images, channels].
struct Moments {
  Row mean, m2;
};
// Of images of so many pixels. Updates the running statistics.
void take_batch_statistics(Normalisation& norm, const Moments& moments, int64_t images, int64_t pixels, double eps,
                           double momentum);

struct NormGradients {
  NormGradient<Row> input;
  Row dgamma, dbeta, dbias;
  double dgate;
};
// s1, s2: [channels]; count: values of a channel.
NormGradients gradients_of(const Normalisation& norm, double gate, const double* s1, const double* s2, int64_t count);

Row row_of(const at::Tensor& tensor);
at::Tensor tensor_of(const Row& row);

template <class T>
std::vector<T> cast(const Row& row) {
  return {row.begin(), row.end()};
}
template <class T>
NormGradient<std::vector<T>> cast(const NormGradient<Row>& rows) {
  return {cast<T>(rows.of_dy), cast<T>(rows.of_z), cast<T>(rows.constant)};
}

// As the kernels take them.
template <class T>
NormGradient<const T*> pointers(const NormGradient<std::vector<T>>& rows) {
  return {rows.of_dy.data(), rows.of_z.data(), rows.constant.data()};
}
template <class T>
ScaleShift<const T*> pointers(const ScaleShift<std::vector<T>>& rows) {
  return {rows.scale.data(), rows.shift.data()};
}

// rows: [images, width] -> [width], in the order of the images.
Row sum_images(const Row& rows, int64_t width);

}  // namespace advnas
