#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace advnas {

// A sequence through the recurrent cell on one path, with autograd: python/advnas_ext/reference.py has the formula,
// python/advnas_ext/recurrent.py the checks of what users pass.
//
// x: [length, batch, units]. h: [batch, units]. gates: [num_edges, picks], on the host. offsets: zeros [num_edges] on the host,
// or none. ops: of every pick, in the order of the gates, a RecurrentOp, or kNumRecurrentOps for an operation that contributes
// nothing. weights: [2 units, 2 units] and then [units, 2 units] for each node; the kind and place of x.
// Returns the hidden states after each step, [length, batch, units].
at::Tensor recurrent(const at::Tensor& x, const at::Tensor& h, const at::Tensor& gates, const std::optional<at::Tensor>& offsets,
                     const std::vector<int64_t>& ops, const std::vector<at::Tensor>& weights);

}  // namespace advnas
