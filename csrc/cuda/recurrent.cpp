// The recurrent cell on a GPU: products by the library, everything else of a node in one launch. What leaves a node is one
// product for all of its edges, whose weights are put side by side once for the sequence. Nothing waits for the device.
#include <ATen/ATen.h>

#include "../device.h"
#include "../recurrent_pass.h"

namespace advnas::cuda {
namespace {

using at::Tensor;
using Node = RecurrentNode<float>;

// The edges out of a node: columns of the pre-activations, and their weights, [units, width].
struct Leaving {
  int64_t column = 0, width = 0;
  Tensor weight;

  Tensor of(const Tensor& pre) const { return pre.narrow(1, column, width); }
};

std::vector<Leaving> leaving_of(const RecurrentPass& pass) {
  std::vector<Leaving> leaving(pass.plan.nodes.size());
  std::vector<std::vector<Tensor>> weights(leaving.size());
  for (const RecurrentEdge& edge : pass.plan.edges) {
    Leaving& out = leaving[edge.source];
    if (out.width == 0) out.column = edge.column;
    out.width += edge.width;
    weights[edge.source].push_back(pass.weights[edge.weight].narrow(1, 0, edge.width));
  }
  for (size_t node = 0; node < leaving.size(); ++node) {
    if (leaving[node].width > 0) leaving[node].weight = at::cat(weights[node], 1);
  }
  return leaving;
}

Tensor at_step(const Tensor& kept, int64_t step) { return kept[kept.size(0) == 1 ? 0 : step]; }

Tensor states_at(const RecurrentPass& pass, int64_t step) { return pass.states.select(1, pass.states.size(1) == 1 ? 0 : step); }

void node_forward(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& out, void* stream) {
  for_device_type(out.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    recurrent_forward(node, static_cast<const T*>(states.const_data_ptr()), static_cast<const T*>(pre.const_data_ptr()),
                      static_cast<T*>(out.mutable_data_ptr()), stream);
  });
}

// sums: undefined if not wanted.
void node_backward(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& dout, const Tensor& dstates,
                   const Tensor& dpre, const Tensor& sums, const Tensor& workspace, void* stream) {
  for_device_type(dout.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    recurrent_backward(node, static_cast<const T*>(states.const_data_ptr()), static_cast<const T*>(pre.const_data_ptr()),
                       static_cast<const T*>(dout.const_data_ptr()), static_cast<T*>(dstates.mutable_data_ptr()),
                       static_cast<T*>(dpre.mutable_data_ptr()), sums.defined() ? sums.mutable_data_ptr<double>() : nullptr,
                       sums.defined() ? workspace.mutable_data_ptr<float>() : nullptr, stream);
  });
}

}  // namespace

void recurrent_forward(const RecurrentPass& pass) {
  const OnDevice device(pass.out);
  const auto nodes = nodes_of<float>(pass.plan);
  const auto leaving = leaving_of(pass);
  const int64_t num_nodes = pass.num_nodes();
  for (int64_t step = 0; step < pass.length(); ++step) {
    const Tensor states = states_at(pass, step), pre = at_step(pass.pre, step);
    if (pass.plan.reads_input()) {
      const Tensor before = step == 0 ? pass.h : pass.out[step - 1];
      Tensor z = pass.pre_input[step];
      z.addmm_(pass.h_mask.defined() ? before * pass.h_mask : before, pass.from_h());
      node_forward(nodes[0], before, z, states[0], device.stream());
    }
    for (int64_t t = 0; t <= num_nodes; ++t) {
      if (t > 0) node_forward(nodes[t], states, pre, states[t], device.stream());
      if (leaving[t].width == 0) continue;
      Tensor product = leaving[t].of(pre);
      at::mm_out(product, states[t], leaving[t].weight);
    }
    Tensor mean = pass.out[step];
    at::mean_out(mean, states.narrow(0, 1, num_nodes), {0});
  }
}

void recurrent_backward(const RecurrentPass& pass, const RecurrentGradients& gradients) {
  const OnDevice device(pass.out);
  const auto nodes = nodes_of<float>(pass.plan);
  const auto leaving = leaving_of(pass);
  const int64_t num_nodes = pass.num_nodes();
  const Tensor dstates = at::empty({1 + num_nodes, pass.batch(), pass.units()}, pass.out.options());
  Tensor dh = gradients.dh, dmask = gradients.dh_mask, workspace;
  if (gradients.sums.defined()) {
    int64_t largest = 0;
    for (const Node& node : nodes) largest = std::max(largest, recurrent_workspace(node));
    workspace = at::empty({largest}, dh.options().dtype(at::kFloat));
  }
  const auto add_leaving = [&](int64_t t, const Tensor& dpre) {
    if (leaving[t].width > 0) dstates[t].addmm_(leaving[t].of(dpre), leaving[t].weight.t());
  };
  for (int64_t step = pass.length() - 1; step >= 0; --step) {
    const Tensor states = states_at(pass, step), pre = at_step(pass.pre, step), dpre = at_step(gradients.dpre, step);
    dstates[0].zero_();
    dstates.narrow(0, 1, num_nodes).copy_(dh.add_(gradients.dout[step]).div_(num_nodes));
    for (int64_t t = num_nodes; t > 0; --t) {
      add_leaving(t, dpre);
      node_backward(nodes[t], states, pre, dstates[t], dstates, dpre, gradients.sums, workspace, device.stream());
    }
    dh.zero_();
    if (!pass.plan.reads_input()) continue;
    add_leaving(0, dpre);
    const Tensor before = step == 0 ? pass.h : pass.out[step - 1], dz = at_step(gradients.dpre_input, step);
    node_backward(nodes[0], before, pass.pre_input[step], dstates[0], dh, dz, Tensor(), Tensor(), device.stream());
    if (step == 0 && !gradients.wants_h && !dmask.defined()) continue;
    if (!pass.h_mask.defined()) {
      dh.addmm_(dz, pass.from_h().t());
      continue;
    }
    const Tensor masked = at::mm(dz, pass.from_h().t());
    dh.addcmul_(masked, pass.h_mask);
    if (dmask.defined()) dmask.addcmul_(masked, before);
  }
}

}  // namespace advnas::cuda
