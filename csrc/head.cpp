// The head with autograd: two passes over the images forward (statistics, features) and two backward (sums, gradient), since
// batch norm needs the whole batch in between.
#include "head.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "images.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct HeadCall : torch::CustomClassHolder {
  Normalisation norm;
  double eps, momentum;
};

template <class Body>
void for_images(int64_t images, const Body& body) {
  at::parallel_for(0, images, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i);
  });
}

template <class T>
ScaleShift<std::vector<T>> map_of(const Rows& rows) {
  ScaleShift<std::vector<T>> map;
  for (size_t c = 0; c < rows.mean.size(); ++c) {
    const auto [scale, shift] = batch_norm_forward(1, rows.gamma[c], rows.beta[c], rows.mean[c], rows.rstd[c]);
    map.scale.push_back(T(scale));
    map.shift.push_back(T(shift));
  }
  return map;
}

template <class T>
Tensor run_forward(const Tensor& x, HeadCall& call) {
  const auto& kernels = cpu::kernels<T>();
  const Images<const T> images(x);
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  take_parameters(call.norm, channels);
  if (call.norm.statistics == Statistics::kBatch) {
    Moments moments{Row(batch * channels), Row(batch * channels)};
    for_images(batch, [&](int64_t i) {
      kernels.channel_moments(images[i], pixels, channels, moments.mean.data() + i * channels, moments.m2.data() + i * channels);
    });
    take_batch_statistics(call.norm, moments, batch, pixels, call.eps, call.momentum);
  } else {
    take_fixed_statistics(call.norm, call.eps);
  }
  const auto map = map_of<T>(call.norm.rows);
  const Tensor h = at::empty({batch, channels}, x.options());
  T* const features = h.mutable_data_ptr<T>();
  for_images(batch,
             [&](int64_t i) { kernels.head_forward(images[i], pointers(map), pixels, channels, features + i * channels); });
  return h;
}

struct HeadGradients {
  Tensor x, gamma, beta;
};

template <class T>
HeadGradients run_backward(const Tensor& x, const Tensor& dh, const HeadCall& call, bool wants_x) {
  const auto& kernels = cpu::kernels<T>();
  const Images<const T> images(x);
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  const T* const gradients = dh.const_data_ptr<T>();
  const auto map = map_of<T>(call.norm.rows);
  const auto means = cast<T>(call.norm.rows.mean);
  Row partial(batch * 2 * channels);
  for_images(batch, [&](int64_t i) {
    double* const sums = partial.data() + i * 2 * channels;
    kernels.head_sums(images[i], gradients + i * channels, pointers(map), means.data(), pixels, channels, sums,
                      sums + channels);
  });
  const Row sums = sum_images(partial, 2 * channels);
  const NormGradients norm = gradients_of(call.norm, 1, sums.data(), sums.data() + channels, batch * pixels);
  HeadGradients result{Tensor(), tensor_of(norm.dgamma).to(x.scalar_type()), tensor_of(norm.dbeta).to(x.scalar_type())};
  if (!wants_x) return result;
  const auto input = cast<T>(norm.input);
  result.x = empty_images(batch, shape_of(x), x.scalar_type());
  const Images<T> dx(result.x);
  for_images(batch, [&](int64_t i) {
    kernels.head_backward(images[i], gradients + i * channels, pointers(map), pointers(input),
                          pixels, channels, dx[i]);
  });
  return result;
}

class Head : public torch::autograd::Function<Head> {
 public:
  // gamma and beta are there to get gradients; the call has them as well.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& gamma,
                        const std::optional<Tensor>& beta, const c10::intrusive_ptr<HeadCall>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor images = x.contiguous(at::MemoryFormat::ChannelsLast);
    ctx->save_for_backward({images, gamma.value_or(Tensor()), beta.value_or(Tensor())});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "head", [&] { return run_forward<scalar_t>(images, *call); });
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "head: double backward is not implemented; call backward without create_graph");
    const auto call = c10::static_intrusive_pointer_cast<HeadCall>(ctx->saved_data["call"].toCapsule());
    const Tensor x = ctx->get_saved_variables()[0];
    const HeadGradients gradients = AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "head_backward", [&] {
      return run_backward<scalar_t>(x, grads[0].contiguous(), *call, ctx->needs_input_grad(0));
    });
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
                use_running ? Statistics::kRunning : Statistics::kBatch,
                {},
                {}};
  check_rows(call->norm, x.size(1), x.device());
  call->eps = eps;
  call->momentum = momentum;
  return Head::apply(x, gamma, beta, call);
}

}  // namespace advnas
