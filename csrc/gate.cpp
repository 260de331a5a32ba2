// torch.ops.advnas_ext.gate and gate_backward: documented in python/advnas_ext/gate.py, formula in kernels/gate.h.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <numeric>
#include <optional>

#include "cpu/parallel.h"
#include "device.h"
#include "kernels/cpu/isa.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using GateGradients = std::tuple<Tensor, Tensor>;

// Elements in a chunk: one chunk is one partial sum, so the result does not depend on the number of threads.
constexpr int64_t kChunk = 1 << 15;

// Everywhere without a kernel: in dtype and device of h, the sum in double.
Tensor forward_plain(const Tensor& h, const Tensor& gate, const MaybeTensor& /*baseline*/) {
  return h * gate.reshape({}).to(h.options());
}

GateGradients backward_plain(const Tensor& h, const Tensor& dy, const Tensor& gate, const MaybeTensor& baseline) {
  const auto wide = h.options().dtype(at::promoteTypes(h.scalar_type(), at::kFloat));
  const Tensor gain = baseline ? h.to(wide) - baseline->to(wide) : h.to(wide);
  return {dy * gate.reshape({}).to(h.options()), (dy.to(wide) * gain).sum(at::kDouble).to(gate.options()).reshape(gate.sizes())};
}

// The kernel walks all arrays in h's order.
Tensor in_order_of(const Tensor& h, const Tensor& other) {
  const bool is = other.strides() == h.strides() && other.scalar_type() == h.scalar_type();
  return is ? other : at::empty_like(h).copy_(other);
}

Tensor in_order_of(const Tensor& h, const MaybeTensor& baseline) { return baseline ? in_order_of(h, *baseline) : Tensor(); }

template <class T>
const T* data_of(const Tensor& maybe) {
  return maybe.defined() ? static_cast<const T*>(maybe.const_data_ptr()) : nullptr;
}

bool has_cpu_kernel(const Tensor& h) {
  return (h.scalar_type() == at::kFloat || h.scalar_type() == at::kDouble) && h.is_non_overlapping_and_dense();
}

template <class Body>
void for_chunks(int64_t size, const Body& body) {
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk, chunk * kChunk, std::min(size, (chunk + 1) * kChunk));
  });
}

Tensor forward_cpu(const Tensor& h, const Tensor& gate, const MaybeTensor& baseline) {
  if (!has_cpu_kernel(h)) return forward_plain(h, gate, baseline);
  Tensor y = at::empty_like(h);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "gate", [&] {
    const auto g = scalar_t(gate.item<double>());
    const scalar_t* from = h.const_data_ptr<scalar_t>();
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    for_chunks(h.numel(), [&](int64_t, int64_t begin, int64_t end) {
      cpu::kernels<scalar_t>().gate_forward(from + begin, g, to + begin, end - begin);
    });
  });
  return y;
}

GateGradients backward_cpu(const Tensor& h, const Tensor& dy, const Tensor& gate, const MaybeTensor& baseline) {
  if (!has_cpu_kernel(h)) return backward_plain(h, dy, gate, baseline);
  Tensor dh = at::empty_like(h);
  const Tensor ordered = in_order_of(h, dy), compared = in_order_of(h, baseline);
  std::vector<double> partial((h.numel() + kChunk - 1) / kChunk);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "gate_backward", [&] {
    const auto g = scalar_t(gate.item<double>());
    const scalar_t* in = h.const_data_ptr<scalar_t>();
    const scalar_t* grad = ordered.const_data_ptr<scalar_t>();
    const scalar_t* base = data_of<scalar_t>(compared);
    scalar_t* out = dh.mutable_data_ptr<scalar_t>();
    for_chunks(h.numel(), [&](int64_t chunk, int64_t begin, int64_t end) {
      const scalar_t* base_here = base == nullptr ? nullptr : base + begin;
      partial[chunk] = cpu::kernels<scalar_t>().gate_backward(in + begin, base_here, grad + begin, g, out + begin, end - begin);
    });
  });
  return {dh, at::full(gate.sizes(), std::accumulate(partial.begin(), partial.end(), 0.0), gate.options())};
}

#ifdef ADVNAS_CUDA
bool has_cuda_kernel(const Tensor& h) { return has_device_type(h.scalar_type()) && h.is_non_overlapping_and_dense(); }

// A gate on the device stays there: nobody waits for it.
cuda::GateValue value_of(const Tensor& gate) {
  if (gate.is_cuda() && gate.scalar_type() == at::kFloat) return {0, gate.const_data_ptr<float>()};
  return {gate.item<float>(), nullptr};
}

Tensor forward_cuda(const Tensor& h, const Tensor& gate, const MaybeTensor& baseline) {
  if (!has_cuda_kernel(h)) return forward_plain(h, gate, baseline);
  const OnDevice device(h);
  Tensor y = at::empty_like(h);
  for_device_type(h.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    cuda::gate_forward(static_cast<const T*>(h.const_data_ptr()), value_of(gate), static_cast<T*>(y.mutable_data_ptr()),
                       h.numel(), device.stream());
  });
  return y;
}

GateGradients backward_cuda(const Tensor& h, const Tensor& dy, const Tensor& gate, const MaybeTensor& baseline) {
  if (!has_cuda_kernel(h)) return backward_plain(h, dy, gate, baseline);
  const OnDevice device(h);
  Tensor dh = at::empty_like(h);
  const Tensor ordered = in_order_of(h, dy), compared = in_order_of(h, baseline);
  const Tensor workspace = at::empty({cuda::kGateWorkspace}, h.options().dtype(at::kFloat));
  const Tensor dg = at::empty({1}, workspace.options());
  for_device_type(h.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    cuda::gate_backward(static_cast<const T*>(h.const_data_ptr()), data_of<T>(compared),
                        static_cast<const T*>(ordered.const_data_ptr()), value_of(gate), static_cast<T*>(dh.mutable_data_ptr()),
                        dg.mutable_data_ptr<float>(), workspace.mutable_data_ptr<float>(), h.numel(), device.stream());
  });
  return {dh, dg.to(gate.options()).reshape(gate.sizes())};
}
#endif

Tensor forward_meta(const Tensor& h, const Tensor&, const MaybeTensor&) { return at::empty_like(h); }
GateGradients backward_meta(const Tensor& h, const Tensor&, const Tensor& gate, const MaybeTensor&) {
  return {at::empty_like(h), at::empty_like(gate)};
}

template <class... Arguments>
auto call(const char* name, const Arguments&... arguments) {
  using Result = std::conditional_t<sizeof...(Arguments) == 3, Tensor, GateGradients>;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Result(const Arguments&...)>().call(
      arguments...);
}

class Gate : public torch::autograd::Function<Gate> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& gate, const MaybeTensor& baseline) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({h, gate, baseline.value_or(Tensor())});
    return call("advnas_ext::gate", h, gate, baseline);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "advnas_ext.gate: double backward is not implemented; call backward without create_graph, or use "
                "advnas_ext.reference.gate");
    const variable_list saved = ctx->get_saved_variables();
    const MaybeTensor baseline = saved[2].defined() ? MaybeTensor(saved[2]) : std::nullopt;
    auto [dh, dg] = call("advnas_ext::gate_backward", saved[0], grads[0], saved[1], baseline);
    return {dh, dg, Tensor()};
  }
};

Tensor checked(const Tensor& h, const Tensor& gate, const MaybeTensor& baseline) {
  TORCH_CHECK_TYPE(h.is_floating_point(), "advnas_ext.gate: h must be floating point, got ", h.scalar_type());
  TORCH_CHECK_VALUE(gate.sym_numel() == 1, "advnas_ext.gate: gate must hold one element, got shape ", gate.sym_sizes(),
                    "; pass the gate of one edge, path.gates[edge, pick]");
  TORCH_CHECK_TYPE(gate.is_floating_point(), "advnas_ext.gate: gate must be floating point, got ", gate.scalar_type());
  if (baseline) {
    TORCH_CHECK_VALUE(baseline->sym_sizes() == h.sym_sizes(), "advnas_ext.gate: baseline must have the shape of h, ",
                      h.sym_sizes(), ", got ", baseline->sym_sizes(), "; leave it out where shapes differ");
    TORCH_CHECK_VALUE(baseline->device() == h.device(), "advnas_ext.gate: baseline must be on the device of h, ", h.device(),
                      ", got ", baseline->device());
    TORCH_CHECK_TYPE(baseline->is_floating_point(), "advnas_ext.gate: baseline must be floating point, got ",
                     baseline->scalar_type());
  }
  return Gate::apply(h, gate, baseline);
}

}  // namespace

TORCH_LIBRARY(advnas_ext, m) {
  m.def("gate(Tensor h, Tensor gate, Tensor? baseline=None) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("gate_backward(Tensor h, Tensor dy, Tensor gate, Tensor? baseline=None) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(advnas_ext, CompositeExplicitAutograd, m) {
  m.impl("gate", forward_plain);
  m.impl("gate_backward", backward_plain);
}
TORCH_LIBRARY_IMPL(advnas_ext, Meta, m) {
  m.impl("gate", forward_meta);
  m.impl("gate_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(advnas_ext, CPU, m) {
  m.impl("gate", forward_cpu);
  m.impl("gate_backward", backward_cpu);
}
#ifdef ADVNAS_CUDA
TORCH_LIBRARY_IMPL(advnas_ext, CUDA, m) {
  m.impl("gate", forward_cuda);
  m.impl("gate_backward", backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(advnas_ext, Autograd, m) { m.impl("gate", checked); }

}  // namespace advnas
