#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace advnas {

// A sequence through a recurrent cell on one path, with autograd: python/advnas_ext/reference.py has the formulas,
// python/advnas_ext/recurrent.py the checks of what users pass.
//
// x: [length, batch, units]. h: [batch, units]. gates: [num_edges, picks], where their gradient is to be; gate_values: the same on
// the host. offsets: zeros [num_edges], likewise, or none. ops: of every pick, in the order of the gates, a RecurrentOp, or
// kNumRecurrentOps for an operation that contributes nothing. weights: [2 units, 2 units] and then [units, 2 units] for each edge,
// or with `whole` for each node; the kind and place of x. x_mask, h_mask: as h, or none. whole: the cell of DARTS, in which a gate
// multiplies the whole edge, else that of AdvantageNAS.
// Returns the hidden states after each step, [length, batch, units].
at::Tensor recurrent(const at::Tensor& x, const at::Tensor& h, const at::Tensor& gates, const at::Tensor& gate_values,
                     const std::optional<at::Tensor>& offsets, const std::vector<int64_t>& ops,
                     const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& x_mask,
                     const std::optional<at::Tensor>& h_mask, bool whole);

}  // namespace advnas
