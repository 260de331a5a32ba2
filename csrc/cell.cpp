// The cell with autograd: what is saved, and which gradients are wanted. The work is in pass.h.
#include "cell.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <array>

#include "pass.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A call's own data, which autograd does not see: activations among it. What was an input waits for the backward pass in
// autograd, which notices if it is changed meanwhile.
struct Call : torch::CustomClassHolder {
  Pass pass;
  // Place of each convolution's tensors among the inputs of Cell::forward; -1 for absent ones, which autograd does not take.
  std::vector<std::array<int64_t, kNumConvolutionTensors>> place;
  at::ScalarType gates_type = at::kFloat;
  std::vector<int64_t> gates_shape;
  int64_t offsets_place = -1;
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

class Cell : public torch::autograd::Function<Cell> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& /*gates*/, at::TensorList,
                        const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Pass& pass = call->pass;
    pass.nodes = {x};
    run_forward(pass);
    const Tensor y = pass.nodes.back();
    variable_list saved;
    pass.nodes.back() = Tensor();
    if (pass.save) for_inputs(pass, [&](const Tensor& tensor) { saved.push_back(tensor); });
    for_inputs(pass, [](Tensor& tensor) { tensor = Tensor(); });
    ctx->save_for_backward(saved);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "OnePathCell: double backward is not implemented; call backward without create_graph, or use "
                "advnas_ext.reference.cell");
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    const variable_list saved = ctx->get_saved_variables();
    // Without another backward pass to come, activations are freed on the way.
    Pass pass = torch::autograd::get_current_graph_task_keep_graph() ? call->pass : std::move(call->pass);
    auto next = saved.begin();
    for_inputs(pass, [&](Tensor& tensor) { tensor = *next++; });
    const auto wants = [&](size_t k, ConvolutionTensor which) {
      return call->place[k][which] >= 0 && ctx->needs_input_grad(size_t(call->place[k][which]));
    };
    Wanted wanted{
        ctx->needs_input_grad(0), ctx->needs_input_grad(1), call->offsets_place >= 0 && ctx->needs_input_grad(2), {}, {}};
    for (size_t k = 0; k < call->place.size(); ++k) {
      wanted.weight.push_back(wants(k, kWeight) || wants(k, kDepthwise));
      wanted.norm.push_back(wants(k, kGamma) || wants(k, kBeta) || wants(k, kBias));
    }

    const Gradients gradients = run_backward(pass, grads[0], wanted);

    int64_t inputs = call->offsets_place >= 0 ? 3 : 2;
    for (const auto& places : call->place)
      inputs += std::count_if(places.begin(), places.end(), [](int64_t at) { return at >= 0; });
    variable_list result(inputs + 1);  // the call itself is an input too
    result[0] = gradients.x;
    if (wanted.gates) result[1] = gradients.gates.to(call->gates_type).reshape(call->gates_shape);
    if (wanted.offsets) result[2] = gradients.offsets.to(call->gates_type);
    for (size_t k = 0; k < call->place.size(); ++k) {
      const auto put = [&](ConvolutionTensor which, const Tensor& gradient) {
        if (gradient.defined() && wants(k, which)) result[call->place[k][which]] = gradient.to(grads[0].scalar_type());
      };
      put(kWeight, gradients.weight[k]);
      put(kDepthwise, gradients.depthwise[k]);
      put(kGamma, gradients.gamma[k]);
      put(kBeta, gradients.beta[k]);
      put(kBias, gradients.bias[k]);
    }
    return result;
  }
};

}  // namespace

Tensor cell(const Tensor& x, const Tensor& gates, const Tensor& gate_values, const std::optional<Tensor>& offsets,
            const std::vector<int64_t>& offset_targets, const std::vector<Piece>& pieces,
            const std::vector<std::tuple<int64_t, int64_t, int64_t>>& links, int64_t num_nodes, const std::vector<bool>& running,
            const std::vector<std::optional<Tensor>>& tensors) {
  const auto call = c10::make_intrusive<Call>();
  Pass& pass = call->pass;
  pass.gates = row_of(gate_values);
  const bool wants_offsets = offsets && offsets->requires_grad();  // of a node that must be one then
  std::vector<Gate> known;
  for (const double gate : pass.gates) {
    const bool is_one = gate == 1 && !wants_offsets;
    known.push_back(gates.requires_grad() ? Gate::kWanted : gate == 0 ? Gate::kZero : is_one ? Gate::kOne : Gate::kOther);
  }
  std::vector<Link> all;
  for (const auto& [source, target, gate] : links) all.push_back({source, target, gate});
  pass.plan = make_plan(pieces, all, known, num_nodes);
  call->gates_type = gates.scalar_type();
  call->gates_shape = gates.sizes().vec();
  std::vector<Tensor> inputs;
  bool differentiable = x.requires_grad() || gates.requires_grad();
  if (offsets) {
    pass.num_offsets = offsets->numel();
    pass.offset_targets = offset_targets;
    call->offsets_place = 2;
    inputs.push_back(*offsets);
    differentiable |= wants_offsets;
  }
  for (size_t first = 0; first < tensors.size(); first += kNumConvolutionTensors) {
    const auto at = [&](ConvolutionTensor which) { return tensors[first + which].value_or(Tensor()); };
    const auto detached = [&](ConvolutionTensor which) { return at(which).defined() ? at(which).detach() : Tensor(); };
    pass.convolutions.push_back(
        {{detached(kBias), detached(kGamma), detached(kBeta), at(kRunningMean), at(kRunningVar), at(kBatchesTracked)},
         detached(kWeight),
         detached(kDepthwise)});
    auto& place = call->place.emplace_back();
    place.fill(-1);
    for (const auto which : {kWeight, kDepthwise, kBias, kGamma, kBeta}) {
      if (!at(which).defined()) continue;
      place[which] = 2 + int64_t(inputs.size());
      inputs.push_back(at(which));
      differentiable |= at(which).requires_grad();
    }
  }
  for (size_t i = 0, k = 0; i < pieces.size(); ++i) {
    if (pieces[i].kind != Kind::kConvolution) continue;
    if (pieces[i].normalise) pass.convolutions[k].statistics = running[k] ? Statistics::kRunning : Statistics::kBatch;
    ++k;
  }
  pass.save = at::GradMode::is_enabled() && differentiable;
  pass.save_for_gates = gates.requires_grad();
  return Cell::apply(x, gates, at::TensorList(inputs), call);
}

}  // namespace advnas
