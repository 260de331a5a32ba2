// Batch norm as both devices take it, and rows of values on the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace advnas {

using Row = std::vector<double>;  // a value a channel

Row row_of(const at::Tensor& tensor);
at::Tensor tensor_of(const Row& row);

enum class Statistics { kBatch, kRunning, kNone };

// What follows one convolution. Tensors are undefined where there are none.
struct Normalisation {
  at::Tensor bias;  // of the convolution before
  at::Tensor gamma, beta;
  at::Tensor running_mean, running_var, batches_tracked;
  Statistics statistics = Statistics::kNone;
};

// Refuses rows of another length than `channels` or elsewhere than on `device`.
void check_rows(const Normalisation& norm, int64_t channels, at::Device device);

}  // namespace advnas
