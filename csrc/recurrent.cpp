// The recurrent cells over a sequence, with autograd: entry_points.h says what they take, kernels/recurrent_node.h has the
// formula of a node. Steps are the device's part; what does not depend on the step before is here, one product for all steps: x
// W_0, and all weight gradients. Kept for the backward pass: the states and the pre-activations of the edges that run.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "device.h"
#include "entry_points.h"
#include "recurrent_pass.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The first inputs of Recurrent::forward; then the offsets and the mask, if there are any, and the weights.
enum Input { kX, kH, kGates, kRest };

// A call's own data, which autograd does not see.
struct Call : torch::CustomClassHolder {
  size_t offsets = 0, mask = 0, weights = kRest;  // where they are among the inputs; 0: there are none
  RecurrentPlan plan;
  const char* name;
  at::ScalarType gates_type = at::kFloat;
  std::vector<int64_t> gates_shape;
  bool save = false;
};

// As kernels read it.
Tensor dense(const Tensor& tensor) { return tensor.resolve_neg().contiguous(); }

Tensor rows(const Tensor& tensor) { return tensor.reshape({-1, tensor.size(-1)}); }

void run_forward(const RecurrentPass& pass) {
#ifdef ADVNAS_DEVICE
  if (on_device(pass.out)) return cuda::recurrent_forward(pass);
#endif
  cpu::recurrent_forward(pass);
}

void run_backward(const RecurrentPass& pass, const RecurrentGradients& gradients) {
#ifdef ADVNAS_DEVICE
  if (on_device(pass.out)) return cuda::recurrent_backward(pass, gradients);
#endif
  cpu::recurrent_backward(pass, gradients);
}

// out += a^T b, or = the first time. The rows of both may be apart.
void add_product(const Tensor& a, const Tensor& b, Tensor out, bool first) {
  if (first) {
    at::mm_out(out, a.t(), b);
  } else {
    out.addmm_(a.t(), b);
  }
}

class Recurrent : public torch::autograd::Function<Recurrent> {
 public:
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const WithoutAutocast as_given;
    const Tensor x = dense(inputs[kX]);
    const int64_t length = x.size(0), batch = x.size(1), units = x.size(2), kept = call->save ? length : 1;
    RecurrentPass pass{call->plan, {}, dense(inputs[kH]), {}, {}, {}, {}, {}};
    for (const Tensor& weight : inputs.slice(call->weights)) pass.weights.push_back(dense(weight));
    if (call->mask > 0) pass.h_mask = dense(inputs[call->mask]);
    pass.states = at::empty({int64_t(call->plan.nodes.size()), kept, batch, units}, x.options());
    pass.pre = at::empty({kept, batch, call->plan.width}, x.options());
    pass.out = at::empty_like(x);
    if (call->plan.reads_input()) {
      pass.pre_input = at::mm(rows(x), pass.weights[0].narrow(0, 0, units)).view({length, batch, 2 * units});
    }
    if (x.numel() > 0) run_forward(pass);

    if (call->save) {
      variable_list saved{x, pass.h, pass.h_mask, pass.pre_input, pass.states, pass.pre, pass.out};
      saved.insert(saved.end(), pass.weights.begin(), pass.weights.end());
      ctx->save_for_backward(saved);
    }
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return pass.out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    TORCH_CHECK(!at::GradMode::is_enabled(), call->name,
                ": double backward is not implemented; call backward without create_graph, or use the cell of "
                "advnas_ext.reference");
    const at::AutoDispatchBelowADInplaceOrView below;
    const WithoutAutocast as_given;
    const variable_list saved = ctx->get_saved_variables();
    const RecurrentPlan& plan = call->plan;
    const Tensor& x = saved[0];
    const RecurrentPass pass{plan, {saved.begin() + 7, saved.end()}, saved[1], saved[2], saved[3], saved[4], saved[5], saved[6]};
    const int64_t length = x.size(0), batch = x.size(1), units = x.size(2);
    const auto wants_weight = [&](size_t i) { return ctx->needs_input_grad(call->weights + i); };
    const auto wants = [&](size_t input) { return input > 0 && ctx->needs_input_grad(input); };
    const bool wants_sums = wants(kGates) || wants(call->offsets);
    const bool wants_edges = std::any_of(plan.edges.begin(), plan.edges.end(),
                                         [&](const RecurrentEdge& edge) { return wants_weight(size_t(edge.weight)); });
    const bool wants_input = plan.reads_input() && (ctx->needs_input_grad(kX) || wants_weight(0));
#ifdef ADVNAS_DEVICE
    std::optional<OnDevice> device;
    if (on_device(x)) device.emplace(x);
#endif

    RecurrentGradients gradients;
    gradients.dout = dense(grads[0]);
    // Where all steps' are wanted they take the place of the pre-activations, unless another backward pass is to come.
    const bool in_place = !torch::autograd::get_current_graph_task_keep_graph();
    const auto gradient_of = [&](const Tensor& pre, bool of_all_steps) {
      if (of_all_steps && in_place) return pre;
      return at::empty({of_all_steps ? length : 1, batch, pre.size(2)}, x.options());
    };
    if (plan.reads_input()) gradients.dpre_input = gradient_of(pass.pre_input, wants_input);
    gradients.dpre = gradient_of(pass.pre, wants_edges);
    gradients.dh = at::zeros({batch, units}, x.options());
    if (wants(call->mask)) gradients.dh_mask = at::zeros({batch, units}, x.options());
    if (wants_sums) gradients.sums = at::zeros({plan.num_sums}, x.options().dtype(at::kDouble));
    gradients.wants_h = ctx->needs_input_grad(kH);
    if (x.numel() > 0) run_backward(pass, gradients);

    variable_list result(call->weights + pass.weights.size() + 1);  // the call itself is an input too
    if (ctx->needs_input_grad(kX)) {
      const Tensor from_x = pass.weights[0].narrow(0, 0, units).t();
      result[kX] = plan.reads_input() ? at::mm(rows(gradients.dpre_input), from_x).view_as(x) : at::zeros_like(x);
    }
    if (gradients.wants_h) result[kH] = gradients.dh;
    if (wants(call->mask)) result[call->mask] = gradients.dh_mask;
    if (wants_sums) {
      const int64_t num_gates = c10::multiply_integers(call->gates_shape);
      const Tensor sums = gradients.sums.to(call->gates_type);
      if (wants(kGates)) result[kGates] = sums.narrow(0, 0, num_gates).view(call->gates_shape);
      if (wants(call->offsets)) result[call->offsets] = sums.narrow(0, num_gates, plan.num_sums - num_gates);
    }
    if (plan.reads_input() && wants_weight(0)) {
      Tensor before = length == 0 ? x : at::cat({pass.h.unsqueeze(0), pass.out.narrow(0, 0, length - 1)});
      if (pass.h_mask.defined()) before = before * pass.h_mask;
      Tensor& gradient = result[call->weights] = at::empty_like(pass.weights[0]);
      add_product(rows(x), rows(gradients.dpre_input), gradient.narrow(0, 0, units), true);
      add_product(rows(before), rows(gradients.dpre_input), gradient.narrow(0, units, units), true);
    }
    for (const RecurrentEdge& edge : plan.edges) {
      if (!wants_weight(size_t(edge.weight))) continue;
      Tensor& gradient = result[call->weights + size_t(edge.weight)];
      const bool first = !gradient.defined(), is_whole = edge.width == 2 * units;
      if (first) gradient = is_whole ? at::empty({units, 2 * units}, x.options()) : at::zeros({units, 2 * units}, x.options());
      add_product(rows(pass.states[edge.source]), rows(gradients.dpre).narrow(1, edge.column, edge.width),
                  gradient.narrow(1, 0, edge.width), first);
    }
    return result;
  }
};

// The edges that run, with their gates, and where the sums are that they give. Every node reaches the output but node 0, which
// only its edges carry on.
void make_plan(RecurrentPlan& plan, const Tensor& gate_values, bool keeps_zeros, const std::vector<int64_t>& ops,
               int64_t num_nodes, bool whole, const Tensor& x, int64_t kept) {
  const Tensor values = gate_values.detach().to(at::kDouble).contiguous();
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
        const int64_t op = ops[place];
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
}

bool has_kernels(const Tensor& x) {
  const auto type = x.scalar_type();
#ifdef ADVNAS_DEVICE
  if (on_device(x)) return has_device_type(type);
#endif
  return x.is_cpu() && (type == at::kFloat || type == at::kDouble);
}

}  // namespace

Tensor recurrent(const Tensor& x, const Tensor& h, const Tensor& gates, const Tensor& gate_values,
                 const std::optional<Tensor>& offsets, const std::vector<int64_t>& ops, const std::vector<Tensor>& weights,
                 const std::optional<Tensor>& x_mask, const std::optional<Tensor>& h_mask, bool whole) {
  const char* const name = whole ? "DartsRecurrentCell" : "OnePathRecurrentCell";
  TORCH_CHECK_VALUE(gate_values.is_cpu() && gate_values.dim() == 2 && gate_values.numel() == int64_t(ops.size()) &&
                        gates.sizes() == gate_values.sizes(),
                    name, ": gates must have shape [num_edges, picks] with values on the host and an op each, got ",
                    gate_values.sizes(), " on ", gate_values.device(), " and ", ops.size(), " ops");
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
  const int64_t units = x.size(2);
  const auto check = [&](const char* what, int64_t index, const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.device() == x.device() && tensor.scalar_type() == x.scalar_type(), name,
                      ": ", what, index < 0 ? "" : "[" + std::to_string(index) + "]", " must be ", x.scalar_type(), " of shape ",
                      shape, " on ", x.device(), ", got ", tensor.scalar_type(), " of shape ", tensor.sizes(), " on ",
                      tensor.device());
  };
  check("h", -1, h, {x.size(1), units});
  if (x_mask) check("x_mask", -1, *x_mask, {x.size(1), units});
  if (h_mask) check("h_mask", -1, *h_mask, {x.size(1), units});
  for (int64_t i = 0; i < num_weights; ++i) check("weights", i, weights[i], {i == 0 ? 2 * units : units, 2 * units});
  for (const int64_t op : ops) {
    TORCH_CHECK_VALUE(op >= 0 && op <= kNumRecurrentOps, name, ": unknown operation ", op);
  }
#ifdef ADVNAS_DEVICE
  std::optional<OnDevice> device;
  if (on_device(x)) device.emplace(x);
#endif
  const auto call = c10::make_intrusive<Call>();
  std::vector<Tensor> inputs{x_mask ? x * *x_mask : x, h, gates};
  const auto add = [&](const std::optional<Tensor>& input, size_t* place) {
    if (!input) return;
    *place = inputs.size();
    inputs.push_back(*input);
  };
  add(offsets, &call->offsets);
  add(h_mask, &call->mask);
  call->weights = inputs.size();
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  call->name = name;
  call->gates_type = gates.scalar_type();
  call->gates_shape = gates.sizes().vec();
  call->save = at::GradMode::is_enabled() &&
               std::any_of(inputs.begin(), inputs.end(), [](const Tensor& tensor) { return tensor.requires_grad(); });
  make_plan(call->plan, gate_values, gates.requires_grad(), ops, num_nodes, whole, x, call->save ? x.size(0) : 1);
  return Recurrent::apply(at::TensorList(inputs), call);
}

}  // namespace advnas
