// The head with autograd. The work is in cpu/cpu_head.h.
#include <torch/csrc/autograd/custom_function.h>

#include "cpu/cpu_head.h"
#include "entry_points.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct HeadCall : torch::CustomClassHolder {
  Normalisation norm;
  NormState state;
  double eps, momentum;
};

class Head : public torch::autograd::Function<Head> {
 public:
  // gamma and beta are there to get gradients; the call has them as well.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& gamma,
                        const std::optional<Tensor>& beta, const c10::intrusive_ptr<HeadCall>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor images = x.resolve_neg().contiguous(at::MemoryFormat::ChannelsLast);
    ctx->save_for_backward({images, gamma.value_or(Tensor()), beta.value_or(Tensor())});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return head_forward(images, call->norm, call->state, call->eps, call->momentum);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "head: double backward is not implemented; call backward without create_graph");
    const auto call = c10::static_intrusive_pointer_cast<HeadCall>(ctx->saved_data["call"].toCapsule());
    // Hooks may give back other strides than they got.
    const Tensor x = ctx->get_saved_variables()[0].contiguous(at::MemoryFormat::ChannelsLast);
    const HeadGradients gradients =
        head_backward(x, grads[0].resolve_neg().contiguous(), call->norm, call->state, ctx->needs_input_grad(0));
    const auto put = [](const Tensor& parameter, const Tensor& gradient) { return parameter.defined() ? gradient : Tensor(); };
    return {gradients.x, put(call->norm.gamma, gradients.gamma), put(call->norm.beta, gradients.beta), Tensor()};
  }
};

}  // namespace

Tensor head(const Tensor& x, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
            const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
            const std::optional<Tensor>& batches_tracked, bool use_running, double eps, double momentum) {
  const auto detached = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->detach() : Tensor(); };
  const auto call = c10::make_intrusive<HeadCall>();
  call->norm = {Tensor(),
                detached(gamma),
                detached(beta),
                running_mean.value_or(Tensor()),
                running_var.value_or(Tensor()),
                batches_tracked.value_or(Tensor()),
                use_running ? Statistics::kRunning : Statistics::kBatch};
  check_rows(call->norm, x.size(1), x.device());
  call->eps = eps;
  call->momentum = momentum;
  return Head::apply(x, gamma, beta, call);
}

}  // namespace advnas
