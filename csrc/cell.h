#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "plan.h"

namespace advnas {

// Tensors that each picked convolution brings, in this order; absent ones are undefined.
enum ConvolutionTensor { kWeight, kBias, kGamma, kBeta, kRunningMean, kRunningVar, kBatchesTracked, kNumConvolutionTensors };

// A cell on one path, with autograd: advnas_ext/reference.py has the formula, advnas_ext/cell.py the checks of shapes and types.
//
// x: [batch, channels, height, width], float32 or float64, on the host. gates: [num_edges, picks]. offsets: zeros [num_edges], or
// none. pieces: one for each gate. tensors: kNumConvolutionTensors for each picked convolution, in the order of the gates.
// use_running_stats: whether batch norm takes the running statistics, not those of the batch.
at::Tensor cell(const at::Tensor& x, const at::Tensor& gates, const std::optional<at::Tensor>& offsets,
                const std::vector<Piece>& pieces, int64_t num_nodes, const std::vector<std::optional<at::Tensor>>& tensors,
                bool use_running_stats, double eps, double momentum);

}  // namespace advnas
