#include <ATen/ATen.h>

#include <algorithm>

#include "device.h"
#include "recurrent_pass.h"

namespace advnas {
namespace {

using at::Tensor;

bool has_kernels(const Tensor& x) {
  const auto type = x.scalar_type();
#ifdef ADVNAS_DEVICE
  if (on_device(x)) return has_device_type(type);
#endif
  return x.is_cpu() && (type == at::kFloat || type == at::kDouble);
}

// The number of nodes, if everything fits.
int64_t check(const Tensor& x, const Tensor& h, at::TensorList weights, const std::optional<Tensor>& h_mask,
              const Tensor& gate_values, const Tensor& ops, at::IntArrayRef kinds, bool whole) {
  const char* const name = recurrent_name(whole);
  TORCH_CHECK_VALUE(gate_values.is_cpu() && gate_values.dim() == 2 && ops.is_cpu() && ops.sizes() == gate_values.sizes() &&
                        ops.scalar_type() == at::kLong,
                    name, ": gates must have shape [num_edges, picks] with values on the host and an int64 op each, got ",
                    gate_values.sizes(), " on ", gate_values.device(), " and ops ", ops.scalar_type(), ops.sizes(), " on ",
                    ops.device());
  const int64_t num_edges = gate_values.size(0);
  int64_t num_nodes = 0;
  while (num_nodes * (num_nodes + 1) / 2 < num_edges) ++num_nodes;
  const int64_t num_weights = 1 + (whole ? num_nodes : num_edges);
  TORCH_CHECK_VALUE(num_nodes >= 1 && num_nodes <= kMaxRecurrentSources && num_nodes * (num_nodes + 1) / 2 == num_edges, name,
                    ": num_nodes must be from 1 to ", kMaxRecurrentSources, " and gates have a row for each edge, got ",
                    num_edges, " rows");
  TORCH_CHECK_VALUE(int64_t(weights.size()) == num_weights, name, ": needs ", num_weights, " weights, got ", weights.size());
  TORCH_CHECK_VALUE(has_kernels(x) && x.dim() == 3 && x.size(2) > 0, name, ": no kernels for x of ", x.scalar_type(),
                    " and shape ", x.sizes(), " on ", x.device());
  const int64_t batch = x.size(1), units = x.size(2);
  const auto check_one = [&](const char* what, int64_t index, const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.device() == x.device() && tensor.scalar_type() == x.scalar_type(), name,
                      ": ", what, index < 0 ? "" : "[" + std::to_string(index) + "]", " must be ", x.scalar_type(), " of shape ",
                      shape, " on ", x.device(), ", got ", tensor.scalar_type(), " of shape ", tensor.sizes(), " on ",
                      tensor.device());
  };
  check_one("h", -1, h, {batch, units});
  if (h_mask) check_one("h_mask", -1, *h_mask, {batch, units});
  for (int64_t i = 0; i < num_weights; ++i) check_one("weights", i, weights[i], {i == 0 ? 2 * units : units, 2 * units});
  const Tensor picked = ops.contiguous();
  for (const int64_t op : at::ArrayRef<int64_t>(picked.const_data_ptr<int64_t>(), picked.numel())) {
    TORCH_CHECK_VALUE(op >= 0 && op < int64_t(kinds.size()), name, ": path.ops must be below ", kinds.size(),
                      ", the number of ops, got ", op);
  }
  for (const int64_t kind : kinds) {
    TORCH_CHECK_VALUE(kind >= 0 && kind <= kNumRecurrentOps, name, ": unknown operation ", kind);
  }
  return num_nodes;
}

}  // namespace

RecurrentPlan make_plan(const Tensor& x, const Tensor& h, at::TensorList weights, const std::optional<Tensor>& h_mask,
                        const Tensor& gate_values, const Tensor& ops, at::IntArrayRef kinds, bool whole, bool keeps_zeros,
                        int64_t kept) {
  const int64_t num_nodes = check(x, h, weights, h_mask, gate_values, ops, kinds, whole);
  RecurrentPlan plan;
  const Tensor values = gate_values.detach().to(at::kDouble).resolve_neg().contiguous(), picked = ops.contiguous();
  const int64_t picks = values.size(1), num_gates = values.numel(), batch = x.size(1), units = x.size(2);
  plan.num_sums = num_gates + values.size(0);
  RecurrentNode<double> node{batch, units, kept * batch * units, 0, 1, whole, 0, 0, 0, {}};
  plan.nodes.assign(size_t(num_nodes + 1), node);
  int64_t edge = 0;
  bool reads_first = false;
  for (int64_t t = 1; t <= num_nodes; ++t) {
    RecurrentNode<double>& target = plan.nodes[t];
    target.scale = whole ? 1. : 1. / double(t);
    target.constant = int32_t(num_gates + edge);
    target.num_edges = int32_t(t);
    for (int32_t source = 0; source < t; ++source, ++edge) {
      RecurrentSource<double> next{source, 0, 0, {}, whole ? 0. : 1., {}, int32_t(num_gates + edge)};
      for (int64_t place = edge * picks; place < (edge + 1) * picks; ++place) {
        const double gate = values.const_data_ptr<double>()[place];
        const int64_t op = kinds[picked.const_data_ptr<int64_t>()[place]];
        if (op == kNumRecurrentOps || (gate == 0 && !keeps_zeros)) continue;
        next.picked |= 1u << op;
        next.gate[op] = gate;
        next.place[op] = int32_t(place);
        if (whole) next.carry += gate;
      }
      if (whole && next.picked == 0) continue;
      target.source[target.num_sources++] = next;
      plan.edges.push_back({source, t, whole ? t : 1 + edge, 0, next.picked == 0 ? units : 2 * units});
      reads_first |= source == 0;
    }
  }
  std::stable_sort(plan.edges.begin(), plan.edges.end(), [](const auto& a, const auto& b) { return a.source < b.source; });
  for (RecurrentEdge& of_source : plan.edges) {
    of_source.column = plan.width;
    plan.width += of_source.width;
    RecurrentNode<double>& target = plan.nodes[of_source.target];
    const auto is_it = [&](const RecurrentSource<double>& source) { return source.state == of_source.source; };
    std::find_if(target.source, target.source + target.num_sources, is_it)->column = of_source.column;
  }
  for (RecurrentNode<double>& target : plan.nodes) target.pre_stride = plan.width;
  plan.nodes[0].pre_stride = 2 * units;
  if (reads_first) {
    plan.nodes[0].num_sources = 1;
    plan.nodes[0].source[0] = {0, 1u << kRecurrentTanh, 0, {}, 1, {}, 0};
    plan.nodes[0].source[0].gate[kRecurrentTanh] = 1;
  }
  return plan;
}

}  // namespace advnas
