// The cell with autograd: what is saved, and which gradients are wanted. The work is in pass.h.
#include <ATen/SavedTensorHooks.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include "entry_points.h"
#include "pass.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A call's own data, which autograd does not see: activations among it. What was an input waits for the backward pass in
// autograd, which notices if it is changed meanwhile.
struct CellCall : torch::CustomClassHolder {
  // Places of a convolution's parameters among the inputs of Cell::forward; -1 for absent ones, which autograd does not take.
  struct Places {
    int64_t weight, depthwise, bias, gamma, beta;
  };

  Pass pass;
  // Whether activations wait for the backward pass in autograd as well, for those who change what it saves.
  bool saves_activations = false;
  std::vector<Places> places;  // of each convolution
  int64_t num_inputs = 2, offsets_place = -1;
  at::ScalarType gates_type = at::kFloat;
  std::vector<int64_t> gates_shape;
};

// Calls visit(tensor) for all inputs that wait for the backward pass, in a fixed order.
template <class Visit>
void for_inputs(Pass& pass, const Visit& visit) {
  visit(pass.nodes.front());
  for (Convolution& convolution : pass.convolutions) {
    visit(convolution.weight);
    visit(convolution.depthwise);
    visit(convolution.gamma);
    visit(convolution.beta);
  }
}

// The same for what the forward pass left besides.
template <class Visit>
void for_activations(Pass& pass, const Visit& visit) {
  for (size_t node = 1; node < pass.nodes.size(); ++node) visit(pass.nodes[node]);
  for (Tensor& z : pass.z) visit(z);
  for (Tensor& tensor : pass.backend->kept()) visit(tensor);
}

class Cell : public torch::autograd::Function<Cell> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& /*gates*/, at::TensorList,
                        const c10::intrusive_ptr<CellCall>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const WithoutAutocast as_given;
    Pass& pass = call->pass;
    pass.nodes = {x};
    run_forward(pass);
    const Tensor y = pass.nodes.back();
    variable_list saved;
    pass.nodes.back() = Tensor();
    const auto save = [&](const Tensor& tensor) { saved.push_back(tensor); };
    const auto drop = [](Tensor& tensor) { tensor = Tensor(); };
    if (pass.save) for_inputs(pass, save);
    for_inputs(pass, drop);
    // torch.utils.checkpoint, or save_on_cpu: they have to see all that waits. Nobody else pays for it.
    call->saves_activations = pass.save && at::SavedTensorDefaultHooks::get_hooks().has_value();
    if (call->saves_activations) {
      for_activations(pass, save);
      for_activations(pass, drop);
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "OnePathCell: double backward is not implemented; call backward without create_graph, or use "
                "advnas_ext.reference.cell");
    constexpr c10::DispatchKeySet kBatched({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
    TORCH_CHECK(grads[0].layout() == at::kStrided && !grads[0].key_set().has_any(kBatched),
                "OnePathCell: the gradient of the output must be a dense tensor and not a batch of gradients, got layout ",
                grads[0].layout());
    const WithoutAutocast as_given;
    const auto call = c10::static_intrusive_pointer_cast<CellCall>(ctx->saved_data["call"].toCapsule());
    const variable_list saved = ctx->get_saved_variables();
    TORCH_CHECK(!call->pass.nodes.empty(), "OnePathCell: an earlier backward pass failed; run the forward pass again");
    // Without another backward pass to come, activations are freed on the way.
    Pass pass = torch::autograd::get_current_graph_task_keep_graph() ? call->pass.copy() : std::move(call->pass);
    auto next = saved.begin();
    const auto take = [&](Tensor& tensor) { tensor = *next++; };
    for_inputs(pass, take);
    if (call->saves_activations) {
      for_activations(pass, take);
      // Hooks may give back other strides than they got, as save_on_cpu(pin_memory=True) does.
      const auto order = [](Tensor& tensor) {
        if (tensor.defined()) tensor = tensor.contiguous(at::MemoryFormat::ChannelsLast);
      };
      order(pass.nodes.front());
      for_activations(pass, order);
    }
    const auto wants = [&](int64_t place) { return place >= 0 && ctx->needs_input_grad(size_t(place)); };
    Wanted wanted{wants(0), wants(1), wants(call->offsets_place), {}, {}};
    for (const auto& places : call->places) {
      wanted.weight.push_back(wants(places.weight) || wants(places.depthwise));
      wanted.norm.push_back(wants(places.gamma) || wants(places.beta) || wants(places.bias));
    }

    const Gradients gradients = run_backward(pass, grads[0].resolve_neg(), wanted);

    variable_list result(call->num_inputs + 1);  // the call itself is an input too
    result[0] = gradients.x;
    if (wanted.gates) result[1] = gradients.gates.to(call->gates_type).reshape(call->gates_shape);
    if (wanted.offsets) result[call->offsets_place] = gradients.offsets.to(call->gates_type);
    const auto put = [&](int64_t place, const Tensor& gradient) {
      if (gradient.defined() && wants(place)) result[place] = gradient;  // autograd converts it to its tensor's type
    };
    for (size_t k = 0; k < call->places.size(); ++k) {
      const auto& places = call->places[k];
      put(places.weight, gradients.weight[k]);
      put(places.depthwise, gradients.depthwise[k]);
      put(places.bias, gradients.bias[k]);
      put(places.gamma, gradients.gamma[k]);
      put(places.beta, gradients.beta[k]);
    }
    return result;
  }
};

}  // namespace

Step Step::with_weights_in(at::ScalarType type) const {
  Step step = *this;
  for (Tensor* const tensor : {&step.weight, &step.depthwise}) {
    if (tensor->defined()) *tensor = tensor->to(type);
  }
  return step;
}

Tensor cell(const Tensor& images, const Tensor& gates, const Tensor& gate_values, const std::optional<Tensor>& offsets,
            const std::vector<int64_t>& offset_targets, const std::vector<LinkedStep>& steps, int64_t num_nodes) {
  const Tensor x = images.resolve_neg();
  const auto call = c10::make_intrusive<CellCall>();
  Pass& pass = call->pass;
  pass.gates = row_of(gate_values);
  const bool wants_offsets = offsets && offsets->requires_grad();  // of a node that must be one then
  std::vector<GateState> known;
  for (const double gate : pass.gates) {
    const bool is_one = gate == 1 && !wants_offsets;
    known.push_back(gates.requires_grad() ? GateState::kWanted
                    : gate == 0           ? GateState::kZero
                    : is_one              ? GateState::kOne
                                          : GateState::kOther);
  }
  call->gates_type = gates.scalar_type();
  call->gates_shape = gates.sizes().vec();
  std::vector<Tensor> inputs;
  bool differentiable = x.requires_grad() || gates.requires_grad();
  const auto add_input = [&](const Tensor& tensor) -> int64_t {
    if (!tensor.defined()) return -1;
    inputs.push_back(tensor);
    differentiable |= tensor.requires_grad();
    return call->num_inputs++;
  };
  if (offsets) {
    pass.num_offsets = offsets->numel();
    pass.offset_targets = offset_targets;
    call->offsets_place = add_input(*offsets);
  }
  const auto detached = [](const Tensor& tensor) { return tensor.defined() ? tensor.detach() : tensor; };
  const int64_t num_gates = int64_t(pass.gates.size());
  TORCH_CHECK_VALUE(gates.numel() == num_gates, "advnas_ext: gates and their values differ in number, ", gates.numel(), " and ",
                    num_gates);
  TORCH_CHECK_VALUE(!offsets || offset_targets.empty() || pass.num_offsets > 0, "advnas_ext: there are no offsets for ",
                    offset_targets.size(), " edges");
  for (const int64_t target : offset_targets) {
    TORCH_CHECK_VALUE(target >= -1 && target < num_nodes, "advnas_ext: an offset of node ", target, " among ", num_nodes);
  }
  std::vector<Piece> pieces;
  std::vector<Link> links;
  for (const auto& [given, source, target, gate] : steps) {
    TORCH_CHECK_VALUE(given != nullptr, "advnas_ext: a graph needs steps, got None");
    TORCH_CHECK_VALUE(source >= 0 && source < target && target < num_nodes, "advnas_ext: a step from node ", source, " to ",
                      target, " among ", num_nodes);
    TORCH_CHECK_VALUE(gate >= -1 && gate < num_gates, "advnas_ext: the path has ", num_gates, " gates, and a step has gate ",
                      gate);
    const Step& step = *given;
    pieces.push_back(step.piece);
    links.push_back({source, target, gate});
    const bool is_convolution = step.piece.kind == Kind::kConvolution;
    TORCH_CHECK_VALUE(is_convolution || !step.weight.defined(), "advnas_ext: only a convolution takes tensors; leave them out");
    if (!is_convolution) continue;
    TORCH_CHECK_VALUE(step.weight.defined(), "advnas_ext: a convolution needs a weight, got None; give the step one");
    const Statistics statistics = !step.piece.normalise ? Statistics::kNone
                                  : step.use_running    ? Statistics::kRunning
                                                        : Statistics::kBatch;
    pass.convolutions.push_back({{detached(step.bias), detached(step.gamma), detached(step.beta), step.running_mean,
                                  step.running_var, step.batches_tracked, statistics},
                                 detached(step.weight),
                                 detached(step.depthwise)});
    call->places.push_back(
        {add_input(step.weight), add_input(step.depthwise), add_input(step.bias), add_input(step.gamma), add_input(step.beta)});
  }
  pass.plan = make_plan(pieces, links, known, num_nodes);
  pass.save = at::GradMode::is_enabled() && differentiable;
  pass.save_for_gates = gates.requires_grad();
  return Cell::apply(x, gates, at::TensorList(inputs), call);
}

}  // namespace advnas
