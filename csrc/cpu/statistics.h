// Batch norm on the host: its statistics from those of every image, its gradients from sums over its output's. Formulas:
// kernels/batch_norm_math.h.
#pragma once

#include <vector>

#include "../kernels/batch_norm_math.h"
#include "../normalisation.h"

namespace advnas {

// What the forward pass leaves of one batch norm for the backward pass: the parameters, and the statistics of the convolution's
// output without its bias. Without batch norm the mean is 0 and the deviation 1.
struct NormState {
  Row bias, gamma, beta, mean, rstd;
};

// With the statistics to come.
NormState parameters_of(const Normalisation& norm, int64_t channels);

// Statistics that do not come from the batch.
void take_fixed_statistics(const Normalisation& norm, NormState& state, double eps);

// Of each image, [images, channels].
struct Moments {
  Row mean, m2;
};
// Of images of so many pixels. Updates the running statistics.
void take_batch_statistics(const Normalisation& norm, NormState& state, const Moments& moments, int64_t images, int64_t pixels,
                           double eps, double momentum);

struct NormGradients {
  NormGradient<Row> input;
  Row dgamma, dbeta, dbias;
  double dgate;
};
// s1, s2: [channels]; count: values of a channel.
NormGradients gradients_of(Statistics statistics, const NormState& state, double gate, const double* s1, const double* s2,
                           int64_t count);

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
