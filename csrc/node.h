// The kernels of kernels/cell.h over a batch: threads, dtypes, and sums over the images in a fixed order.
//
// Tensors are [batch, channels, height, width], dense in channels_last order, float32 or float64, on the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace advnas {

using Row = std::vector<double>;  // a value a channel

struct Scaled {
  at::Tensor image;
  Row scale;
};
struct Pooled {
  at::Tensor image;
  double gate;
};

// The gathered sum of kernels/cell.h, forward.
at::Tensor node_forward(const at::Tensor& like, const std::vector<Scaled>& scaled, const std::vector<Pooled>& pooled, const Row& bias);

struct NodeGradient {
  at::Tensor dx;
  Row scaled_gate_grad, pooled_gate_grad;  // empty if not wanted
};
// Backward. x may be undefined where `masked` is empty and no gate gradient is wanted.
NodeGradient node_backward(const at::Tensor& like, const at::Tensor& x, const std::vector<Scaled>& scaled,
                           const std::vector<Pooled>& pooled, const std::vector<at::Tensor>& masked, bool want_gate_grad);

struct Moments {
  Row mean, variance;  // biased
};
Moments channel_moments(const at::Tensor& z);

struct BatchNormSums {
  Row s1;
  std::vector<Row> s2;
};
BatchNormSums batch_norm_sums(const at::Tensor& dy, const std::vector<at::Tensor>& z, const std::vector<Row>& mean);

at::Tensor batch_norm_input_gradient(const at::Tensor& dy, const at::Tensor& z, const Row& of_dy, const Row& of_z, const Row& constant);

}  // namespace advnas
