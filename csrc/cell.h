#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "plan.h"

namespace advnas {

// Tensors that each picked convolution brings, in this order; absent ones are undefined.
enum ConvolutionTensor {
  kWeight,
  kDepthwise,
  kBias,
  kGamma,
  kBeta,
  kRunningMean,
  kRunningVar,
  kBatchesTracked,
  kNumConvolutionTensors
};

// A graph of nodes on one path, with autograd: python/advnas_ext/reference.py has the formula, python/advnas_ext/native.py the
// checks of shapes and types.
//
// x: [batch, channels, height, width], float32 or float64 on the host, float32, float16 or bfloat16 on the device. gates: any
// shape; Link::gate is a place in it, flattened; their gradient goes to the device where they are. gate_values: the same values,
// on the host, so that nobody waits for a device. offsets: zeros, or none; offset k modulo their number is added to node
// offset_targets[k]. pieces, links: plan.h. running: of each picked convolution, whether batch norm takes the running statistics,
// not those of the batch. tensors: kNumConvolutionTensors for each picked convolution, in the order of the links.
at::Tensor cell(const at::Tensor& x, const at::Tensor& gates, const at::Tensor& gate_values,
                const std::optional<at::Tensor>& offsets, const std::vector<int64_t>& offset_targets,
                const std::vector<Piece>& pieces, const std::vector<std::tuple<int64_t, int64_t, int64_t>>& links,
                int64_t num_nodes, const std::vector<bool>& running, const std::vector<std::optional<at::Tensor>>& tensors);

}  // namespace advnas
