// A sequence through a recurrent cell on one path, as each device runs it: cpu/recurrent.cpp, cuda/recurrent.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels/recurrent_node.h"

namespace advnas {

// An edge that runs. Its pre-activations are `width` columns of `pre`: those of c, and those of u if an operation is picked.
struct RecurrentEdge {
  int64_t source, target, weight, column, width;
};

// What the path makes of the cell.
struct RecurrentPlan {
  std::vector<RecurrentNode<double>>
      nodes;                         // node 0 has one source, the hidden state before the step, or none if nobody reads it
  std::vector<RecurrentEdge> edges;  // in the order of their columns: by source
  int64_t width = 0;                 // columns of all edges
  int64_t num_sums = 0;              // those of all gates, then those of all offsets

  bool reads_input() const { return nodes[0].num_sources > 0; }
};

inline const char* recurrent_name(bool whole) { return whole ? "DartsRecurrentCell" : "OnePathRecurrentCell"; }

// Takes what an operator takes (recurrent.cpp) and refuses what does not fit. The edges that run, with their gates, and where the
// sums are that they give. Every node reaches the output but node 0, which only its edges carry on. keeps_zeros: whether a gate
// of 0 runs, since its gradient is wanted. kept: steps whose states and pre-activations are kept.
RecurrentPlan make_plan(const at::Tensor& x, const at::Tensor& h, at::TensorList weights, const std::optional<at::Tensor>& h_mask,
                        const at::Tensor& gate_values, const at::Tensor& ops, at::IntArrayRef kinds, bool whole, bool keeps_zeros,
                        int64_t kept);

// What a sequence has in memory. kept: length where a backward pass is to come, else 1. States and pre lie for each step.
struct RecurrentPass {
  const RecurrentPlan& plan;
  std::vector<at::Tensor> weights;
  at::Tensor h, h_mask;  // [batch, units]; the mask may be undefined
  at::Tensor pre_input;  // [length, batch, 2 units], of node 0: comes with x W_0, the hidden state's part is added
  at::Tensor states;     // [1 + num_nodes, kept, batch, units]
  at::Tensor pre;        // [kept, batch, width]
  at::Tensor out;        // [length, batch, units]

  int64_t length() const { return out.size(0); }
  int64_t batch() const { return out.size(1); }
  int64_t units() const { return out.size(2); }
  int64_t num_nodes() const { return states.size(0) - 1; }
  // The rows of W_0 that take the hidden state.
  at::Tensor from_h() const { return weights[0].narrow(0, units(), units()); }
};

// Gradients; those of pre-activations have all steps where a product over them is to come, else one. They may be the memory of
// the pre-activations themselves: an element is read before it is written, and then no more.
struct RecurrentGradients {
  at::Tensor dout;              // [length, batch, units]
  at::Tensor dpre_input, dpre;  // as pre_input, pre
  at::Tensor dh, dh_mask;       // [batch, units], start at 0; the mask's undefined if not wanted
  at::Tensor sums;              // double [num_sums], starts at 0; undefined if not wanted
  bool wants_h;                 // whether dh before the first step is wanted
};

namespace cpu {
void recurrent_forward(const RecurrentPass& pass);
void recurrent_backward(const RecurrentPass& pass, const RecurrentGradients& gradients);
}  // namespace cpu
namespace cuda {
void recurrent_forward(const RecurrentPass& pass);
void recurrent_backward(const RecurrentPass& pass, const RecurrentGradients& gradients);
}  // namespace cuda

// The node with the kernel's type of a gate.
template <class G>
RecurrentNode<G> with_gates(const RecurrentNode<double>& node) {
  RecurrentNode<G> typed{node.batch, node.units,       node.state_stride, node.pre_stride, G(node.scale),
                         node.whole, node.num_sources, node.constant,     node.num_edges,  {}};
  for (int32_t k = 0; k < node.num_sources; ++k) {
    const RecurrentSource<double>& from = node.source[k];
    RecurrentSource<G>& to = typed.source[k];
    to.state = from.state;
    to.picked = from.picked;
    to.column = from.column;
    to.carry = G(from.carry);
    to.constant = from.constant;
    for (int op = 0; op < kNumRecurrentOps; ++op) {
      to.gate[op] = G(from.gate[op]);
      to.place[op] = from.place[op];
    }
  }
  return typed;
}

// All nodes of a path likewise.
template <class G>
std::vector<RecurrentNode<G>> nodes_of(const RecurrentPlan& plan) {
  std::vector<RecurrentNode<G>> nodes;
  for (const auto& node : plan.nodes) nodes.push_back(with_gates<G>(node));
  return nodes;
}

}  // namespace advnas
