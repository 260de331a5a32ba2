// The recurrent cells over a sequence, with autograd: kernels/recurrent_node.h has the formula of a node. Steps are the device's
// part; what does not depend on the step before is here, one product for all steps: x W_0, and all weight gradients. Kept for the
// backward pass: the states and the pre-activations of the edges that run.
//
// advnas_ext::recurrent is what users call. Behind it, autograd calls the two passes itself, or as operators where somebody
// traces, as torch.compile does, or counts. Their fake kernels are in python/advnas_ext/recurrent.py.
#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>

#include "device.h"
#include "entry_points.h"
#include "recurrent_pass.h"

// The tests' second library has the same operators beside.
#ifdef ADVNAS_SHIM
#define ADVNAS_OPERATORS advnas_shim
#else
#define ADVNAS_OPERATORS advnas_ext
#endif

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = const std::optional<Tensor>&;

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

// The hidden states, then pre_input, states and pre of RecurrentPass, the last one flat.
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// Gradients of x, h and h_mask and the sums of RecurrentGradients, empty where not wanted; those of the wanted weights.
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

RecurrentPass pass_of(const RecurrentPlan& plan, const Tensor& h, at::TensorList weights, Optional h_mask) {
  RecurrentPass pass{plan, {}, dense(h), h_mask ? dense(*h_mask) : Tensor(), {}, {}, {}, {}};
  for (const Tensor& weight : weights) pass.weights.push_back(dense(weight));
  return pass;
}

// pre, of which no more is touched than the path needs.
Tensor used_of(const Tensor& flat, int64_t kept, int64_t batch, int64_t width) {
  return flat.narrow(0, 0, kept * batch * width).view({kept, batch, width});
}

// direct: called by autograd itself. Otherwise the shapes of all results do not depend on the path.
template <bool direct>
Forward forward(const Tensor& given, const Tensor& h, at::TensorList weights, Optional h_mask, const Tensor& gate_values,
                const Tensor& ops, at::IntArrayRef kinds, bool whole, bool keeps_zeros, bool save) {
  const int64_t kept = save ? given.size(0) : 1;
  const RecurrentPlan plan = make_plan(given, h, weights, h_mask, gate_values, ops, kinds, whole, keeps_zeros, kept);
  const Tensor x = dense(given);
  const int64_t length = x.size(0), batch = x.size(1), units = x.size(2);
#ifdef ADVNAS_DEVICE
  std::optional<OnDevice> device;
  if (on_device(x)) device.emplace(x);
#endif
  RecurrentPass pass = pass_of(plan, h, weights, h_mask);
  pass.states = at::empty({int64_t(plan.nodes.size()), kept, batch, units}, x.options());
  const Tensor pre = at::empty({kept * batch * (direct ? plan.width : 2 * units * gate_values.size(0))}, x.options());
  pass.pre = used_of(pre, kept, batch, plan.width);
  pass.out = at::empty_like(x);
  pass.pre_input = plan.reads_input() ? at::mm(rows(x), pass.weights[0].narrow(0, 0, units)).view({length, batch, 2 * units})
                                      : at::empty({length, batch, 2 * units}, x.options());
  if (x.numel() > 0) run_forward(pass);
  return {pass.out, pass.pre_input, pass.states, pre};
}

// direct: called by autograd itself, and what is no more needed may be written over. wants: the first four results.
template <bool direct>
Backward backward(const Tensor& dout, const Tensor& given, const Tensor& h, at::TensorList weights, Optional h_mask,
                  const Tensor& gate_values, const Tensor& ops, at::IntArrayRef kinds, bool whole, bool keeps_zeros,
                  const Tensor& pre_input, const Tensor& states, const Tensor& pre, const Tensor& out, std::array<bool, 4> wants,
                  at::IntArrayRef wanted_weights) {
  const auto [wants_x, wants_h, wants_mask, wants_sums] = wants;
  const RecurrentPlan plan = make_plan(given, h, weights, h_mask, gate_values, ops, kinds, whole, keeps_zeros, given.size(0));
  const Tensor x = dense(given);
  const int64_t length = x.size(0), batch = x.size(1), units = x.size(2);
#ifdef ADVNAS_DEVICE
  std::optional<OnDevice> device;
  if (on_device(x)) device.emplace(x);
#endif
  RecurrentPass pass = pass_of(plan, h, weights, h_mask);
  // Hooks may give back other strides than they got.
  pass.pre_input = dense(pre_input);
  pass.states = dense(states);
  pass.pre = used_of(dense(pre), length, batch, plan.width);
  pass.out = dense(out);
  const auto wants_weight = [&](int64_t i) {
    return std::find(wanted_weights.begin(), wanted_weights.end(), i) != wanted_weights.end();
  };
  const bool wants_edges =
      std::any_of(plan.edges.begin(), plan.edges.end(), [&](const RecurrentEdge& edge) { return wants_weight(edge.weight); });
  const bool wants_input = plan.reads_input() && (wants_x || wants_weight(0));

  const std::array<int64_t, 4> of_states{int64_t(plan.nodes.size()), length, batch, units};
  const std::array<int64_t, 3> of_input{length, batch, 2 * units};
  TORCH_CHECK_VALUE(dout.sizes() == x.sizes() && out.sizes() == x.sizes() && states.sizes() == at::IntArrayRef(of_states) &&
                        pre_input.sizes() == at::IntArrayRef(of_input),
                    recurrent_name(whole), ": the backward pass needs what the forward pass gave, got shapes ", out.sizes(), ", ",
                    pre_input.sizes(), " and ", states.sizes());

  RecurrentGradients gradients;
  gradients.dout = dense(dout);
  // Where all steps' are wanted they take the place of the pre-activations, unless another backward pass is to come.
  const bool in_place = direct && !torch::autograd::get_current_graph_task_keep_graph();
  const auto gradient_of = [&](const Tensor& pre, bool of_all_steps) {
    if (of_all_steps && in_place) return pre;
    return at::empty({of_all_steps ? length : 1, batch, pre.size(2)}, x.options());
  };
  if (plan.reads_input()) gradients.dpre_input = gradient_of(pass.pre_input, wants_input);
  gradients.dpre = gradient_of(pass.pre, wants_edges);
  gradients.dh = at::zeros({batch, units}, x.options());
  if (wants_mask) gradients.dh_mask = at::zeros({batch, units}, x.options());
  if (wants_sums) gradients.sums = at::zeros({plan.num_sums}, x.options().dtype(at::kDouble));
  gradients.wants_h = wants_h;
  if (x.numel() > 0) run_backward(pass, gradients);

  std::vector<Tensor> of_weights(weights.size());
  if (plan.reads_input() && wants_weight(0)) {
    Tensor before = length == 0 ? x : at::cat({pass.h.unsqueeze(0), pass.out.narrow(0, 0, length - 1)});
    if (pass.h_mask.defined()) before = before * pass.h_mask;
    Tensor& gradient = of_weights[0] = at::empty_like(pass.weights[0]);
    add_product(rows(x), rows(gradients.dpre_input), gradient.narrow(0, 0, units), true);
    add_product(rows(before), rows(gradients.dpre_input), gradient.narrow(0, units, units), true);
  }
  for (const RecurrentEdge& edge : plan.edges) {
    if (!wants_weight(edge.weight)) continue;
    Tensor& gradient = of_weights[edge.weight];
    const bool first = !gradient.defined(), is_whole = edge.width == 2 * units;
    if (first) gradient = is_whole ? at::empty({units, 2 * units}, x.options()) : at::zeros({units, 2 * units}, x.options());
    add_product(rows(pass.states[edge.source]), rows(gradients.dpre).narrow(1, edge.column, edge.width),
                gradient.narrow(1, 0, edge.width), first);
  }
  std::vector<Tensor> wanted;
  for (const int64_t i : wanted_weights) wanted.push_back(of_weights[i]);
  const auto or_empty = [&](bool is_wanted, const Tensor& gradient) {
    return is_wanted ? gradient : at::empty({0}, x.options());
  };
  Tensor dx;
  if (wants_x) {
    const Tensor from_x = pass.weights[0].narrow(0, 0, units).t();
    dx = plan.reads_input() ? at::mm(rows(gradients.dpre_input), from_x).view_as(x) : at::zeros_like(x);
  }
  return {or_empty(wants_x, dx), or_empty(wants_h, gradients.dh), or_empty(wants_mask, gradients.dh_mask),
          wants_sums ? gradients.sums : at::empty({0}, x.options().dtype(at::kDouble)), wanted};
}

// An operator as a function, which whoever traces or counts sees. Its kernel has the type of `kernel`.
template <class Kernel>
auto operator_of(const char* name, Kernel*) {
  const auto full_name = C10_STRINGIZE(ADVNAS_OPERATORS) + std::string("::") + name;
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(full_name.c_str(), "").typed<Kernel>();
  return [handle](const auto&... arguments) { return handle.call(arguments...); };
}

// The first inputs of Recurrent::forward; then the offsets and the mask, if there are any, and the weights.
enum Input { kX, kH, kGates, kRest };
// The first saved tensors; then the weights.
enum Saved { kSavedX, kSavedH, kMask, kValues, kOps, kPreInput, kStates, kPre, kOut, kWeights };

// A call's own data, which autograd does not see.
struct Call : torch::CustomClassHolder {
  size_t offsets = 0, mask = 0, weights = kRest;  // where they are among the inputs; 0: there are none
  Tensor gate_values, ops;                        // until they are saved
  std::vector<int64_t> kinds;
  bool whole = false, keeps_zeros = false, save = false;
  bool shares = false;  // what it has saved with hooks, which may keep it
};

class Recurrent : public torch::autograd::Function<Recurrent> {
 public:
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const WithoutAutocast as_given;
    const at::TensorList weights = inputs.slice(call->weights);
    const auto h_mask = call->mask == 0 ? std::nullopt : std::make_optional(inputs[call->mask]);
    const auto run = [&](const auto& kernel) {
      return kernel(inputs[kX], inputs[kH], weights, h_mask, call->gate_values, call->ops, at::IntArrayRef(call->kinds),
                    call->whole, call->keeps_zeros, call->save);
    };
    const auto [out, pre_input, states, pre] = at::areAnyTensorSubclassLike(inputs)
                                                   ? run(operator_of("recurrent_forward", advnas::forward<false>))
                                                   : run(advnas::forward<true>);
    if (call->save) {
      call->shares = at::SavedTensorDefaultHooks::get_hooks().has_value();
      variable_list saved{inputs[kX], inputs[kH], h_mask.value_or(Tensor()), call->gate_values, call->ops, pre_input, states,
                          pre,        out};
      saved.insert(saved.end(), weights.begin(), weights.end());
      ctx->save_for_backward(saved);
    }
    call->gate_values = call->ops = Tensor();
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    TORCH_CHECK(!at::GradMode::is_enabled(), recurrent_name(call->whole),
                ": double backward is not implemented; call backward without create_graph, or use the cell of "
                "advnas_ext.reference");
    const at::AutoDispatchBelowADInplaceOrView below;
    const WithoutAutocast as_given;
    const variable_list saved = ctx->get_saved_variables();
    const at::TensorList weights = at::TensorList(saved).slice(kWeights);
    const auto wants = [&](size_t input) { return input > 0 && ctx->needs_input_grad(input); };
    const std::array<bool, 4> wanted_inputs{ctx->needs_input_grad(kX), wants(kH), wants(call->mask),
                                            wants(kGates) || wants(call->offsets)};
    std::vector<int64_t> wanted;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (wants(call->weights + i)) wanted.push_back(int64_t(i));
    }
    const auto h_mask = call->mask == 0 ? std::nullopt : std::make_optional(saved[kMask]);
    const auto own = [&](const Tensor& tensor) { return call->shares ? tensor.clone() : tensor; };
    const Tensor pre_input = own(saved[kPreInput]), pre = own(saved[kPre]);  // gradients may take their place
    const auto run = [&](const auto& kernel) {
      return kernel(grads[0], saved[kSavedX], saved[kSavedH], weights, h_mask, saved[kValues], saved[kOps],
                    at::IntArrayRef(call->kinds), call->whole, call->keeps_zeros, pre_input, saved[kStates], pre, saved[kOut],
                    wanted_inputs, at::IntArrayRef(wanted));
    };
    const auto [dx, dh, dmask, sums, dweights] = at::areAnyTensorSubclassLike(saved) || at::isTensorSubclassLike(grads[0])
                                                     ? run(operator_of("recurrent_backward", advnas::backward<false>))
                                                     : run(advnas::backward<true>);

    variable_list result(call->weights + weights.size() + 1);  // the call itself is an input too
    if (wanted_inputs[0]) result[kX] = dx;
    if (wanted_inputs[1]) result[kH] = dh;
    if (wanted_inputs[2]) result[call->mask] = dmask;
    if (wanted_inputs[3]) {
      const Tensor& values = saved[kValues];
      const Tensor of_gates = sums.to(values.scalar_type());
      if (wants(kGates)) result[kGates] = of_gates.narrow_symint(0, 0, values.sym_numel()).view_symint(values.sym_sizes());
      if (wants(call->offsets)) result[call->offsets] = of_gates.narrow_symint(0, values.sym_numel(), values.sym_size(0));
    }
    for (size_t k = 0; k < wanted.size(); ++k) result[call->weights + size_t(wanted[k])] = dweights[k];
    return result;
  }
};

// A sequence through a recurrent cell on one path: python/advnas_ext/reference.py has the formulas,
// python/advnas_ext/recurrent.py the checks of what users pass.
//
// x: [length, batch, units]. h: [batch, units]. gates: [num_edges, picks], where their gradient is to be; gate_values: the same
// on the host. offsets: zeros [num_edges], or none, whose gradient is likewise. ops: int64 [num_edges, picks], on the host,
// places in kinds: so the path is data, and torch.compile does not ask for it. kinds: of every candidate a RecurrentOp, or
// kNumRecurrentOps for one that contributes nothing. weights: [2 units, 2 units] and then [units, 2 units] for each edge, or with
// `whole` for each node; the kind and place of x. x_mask, h_mask: as h, or none. whole: the cell of DARTS, in which a gate
// multiplies the whole edge, else that of AdvantageNAS. Returns the hidden states after each step, [length, batch, units].
Tensor recurrent(const Tensor& x, const Tensor& h, const Tensor& gates, const Tensor& gate_values, Optional offsets,
                 const Tensor& ops, at::IntArrayRef kinds, at::TensorList weights, Optional x_mask, Optional h_mask, bool whole) {
  const auto call = c10::make_intrusive<Call>();
  std::vector<Tensor> inputs{x_mask ? x * *x_mask : x, h, gates};
  const auto add = [&](Optional input, size_t* place) {
    if (!input) return;
    *place = inputs.size();
    inputs.push_back(*input);
  };
  add(offsets, &call->offsets);
  add(h_mask, &call->mask);
  call->weights = inputs.size();
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  call->gate_values = gate_values;
  call->ops = ops;
  call->kinds = kinds.vec();
  call->whole = whole;
  call->keeps_zeros = gates.requires_grad();
  call->save = at::GradMode::is_enabled() &&
               std::any_of(inputs.begin(), inputs.end(), [](const Tensor& tensor) { return tensor.requires_grad(); });
  return Recurrent::apply(at::TensorList(inputs), call);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ADVNAS_OPERATORS, m) {
  m.def(
      "recurrent(Tensor x, Tensor h, Tensor gates, Tensor gate_values, Tensor? offsets, Tensor ops, int[] kinds, Tensor[] "
      "weights, "
      "Tensor? x_mask, Tensor? h_mask, bool whole) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "recurrent_forward(Tensor x, Tensor h, Tensor[] weights, Tensor? h_mask, Tensor gate_values, Tensor ops, int[] kinds, "
      "bool whole, bool keeps_zeros, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "recurrent_backward(Tensor dout, Tensor x, Tensor h, Tensor[] weights, Tensor? h_mask, Tensor gate_values, Tensor ops, "
      "int[] kinds, bool whole, bool keeps_zeros, Tensor pre_input, Tensor states, Tensor pre, Tensor out, bool[4] wants, "
      "int[] wanted_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
      {at::Tag::pt2_compliant_tag});
  m.impl("recurrent", c10::DispatchKey::CompositeImplicitAutograd, recurrent);
  for (const auto device : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA}) {
    m.impl("recurrent_forward", device, forward<false>);
    m.impl("recurrent_backward", device, backward<false>);
  }
}

}  // namespace advnas
