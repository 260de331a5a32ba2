// The recurrent cell over a sequence, with autograd: recurrent.h says what it takes, kernels/recurrent.h has the formula of a
// node.
//
// A node's sources all take the same weight, so the states of a step lie one after the other and neighbours among the sources are
// one matrix product. What does not depend on the step before is one product for all steps: x W_0, and all weight gradients.
// Kept for the backward pass: the states and the pre-activations of the edges that run.
#include "recurrent.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "device.h"
#include "kernels/cpu/isa.h"
#include "kernels/recurrent.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Node = RecurrentNode<double>;

// Elements of a source in a chunk of rows: one chunk is one partial sum, so the result does not depend on the number of threads.
constexpr int64_t kChunk = 1 << 12;

// Fixed inputs of Recurrent::forward; then the offsets, if there are any, and the weights.
enum Input { kX, kH, kGates, kRest };

// A call's own data, which autograd does not see.
struct Call : torch::CustomClassHolder {
  std::vector<Node> nodes;           // node 0 has one source, the hidden state before the step
  std::vector<int64_t> gate_sums;    // of each pick, where its gradient is among the sums; -1 if it is 0
  std::vector<int64_t> offset_sums;  // of each edge
  std::vector<int64_t> first_sum;    // of each node but the first; num_sums at the end
  at::ScalarType gates_type = at::kFloat;
  std::vector<int64_t> gates_shape;
  bool has_offsets = false;
  bool save = false;
};

template <class T>
RecurrentNode<T> with_gates(const Node& node) {
  RecurrentNode<T> typed;
  typed.batch = node.batch;
  typed.units = node.units;
  typed.num_sources = node.num_sources;
  for (int64_t k = 0; k < node.num_sources; ++k) {
    typed.source[k].state = node.source[k].state;
    typed.source[k].picked = node.source[k].picked;
    std::copy_n(node.source[k].gate, kNumRecurrentOps, typed.source[k].gate);
  }
  return typed;
}

int64_t rows_in_chunk(const Node& node) { return std::max<int64_t>(1, kChunk / node.units); }

template <class Body>
void for_chunks(const Node& node, const Body& body) {
  const int64_t rows = rows_in_chunk(node), chunks = (node.batch + rows - 1) / rows;
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk, chunk * rows, std::min(node.batch, (chunk + 1) * rows));
  });
}

void forward_cpu(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "recurrent", [&] {
    const auto typed = with_gates<scalar_t>(node);
    const auto *from = states.const_data_ptr<scalar_t>(), *z = pre.const_data_ptr<scalar_t>();
    auto* const to = out.mutable_data_ptr<scalar_t>();
    for_chunks(node, [&](int64_t, int64_t begin, int64_t end) {
      cpu::kernels<scalar_t>().recurrent_forward(typed, from, z, to, begin, end);
    });
  });
}

void backward_cpu(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& dout, const Tensor& dstates,
                  const Tensor& dpre, double* sums) {
  const int64_t rows = rows_in_chunk(node), width = num_recurrent_sums(node);
  std::vector<double> partial(sums == nullptr ? 0 : (node.batch + rows - 1) / rows * width);
  AT_DISPATCH_FLOATING_TYPES(dout.scalar_type(), "recurrent_backward", [&] {
    const auto typed = with_gates<scalar_t>(node);
    const auto *from = states.const_data_ptr<scalar_t>(), *z = pre.const_data_ptr<scalar_t>();
    const auto* const grad = dout.const_data_ptr<scalar_t>();
    auto *to = dstates.mutable_data_ptr<scalar_t>(), *dz = dpre.mutable_data_ptr<scalar_t>();
    for_chunks(node, [&](int64_t chunk, int64_t begin, int64_t end) {
      double* const own = sums == nullptr ? nullptr : partial.data() + chunk * width;
      cpu::kernels<scalar_t>().recurrent_backward(typed, from, z, grad, to, dz, own, begin, end);
    });
  });
  for (size_t i = 0; i < partial.size(); ++i) sums[i % width] += partial[i];
}

#ifdef ADVNAS_DEVICE
void forward_cuda(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& out) {
  for_device_type(out.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    cuda::recurrent_forward(with_gates<float>(node), static_cast<const T*>(states.const_data_ptr()),
                            static_cast<const T*>(pre.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
                            OnDevice(states).stream());
  });
}

void backward_cuda(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& dout, const Tensor& dstates,
                   const Tensor& dpre, double* sums) {
  const auto typed = with_gates<float>(node);
  Tensor workspace;
  if (sums != nullptr) workspace = at::empty({cuda::recurrent_workspace(typed)}, dout.options().dtype(at::kFloat));
  for_device_type(dout.scalar_type(), [&](auto* zero) {
    using T = std::remove_pointer_t<decltype(zero)>;
    cuda::recurrent_backward(typed, static_cast<const T*>(states.const_data_ptr()), static_cast<const T*>(pre.const_data_ptr()),
                             static_cast<const T*>(dout.const_data_ptr()), static_cast<T*>(dstates.mutable_data_ptr()),
                             static_cast<T*>(dpre.mutable_data_ptr()), sums,
                             workspace.defined() ? workspace.mutable_data_ptr<float>() : nullptr, OnDevice(states).stream());
  });
}
#endif

// out: [batch, units] from states [any number, batch, units] and pre [num_sources, batch, 2 units].
void node_forward(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& out) {
  if (out.numel() == 0) return;
#ifdef ADVNAS_DEVICE
  if (on_device(out)) return forward_cuda(node, states, pre, out);
#endif
  forward_cpu(node, states, pre, out);
}

// sums: on the device of the tensors; null if not wanted.
void node_backward(const Node& node, const Tensor& states, const Tensor& pre, const Tensor& dout, const Tensor& dstates,
                   const Tensor& dpre, double* sums) {
  if (dout.numel() == 0) return;
#ifdef ADVNAS_DEVICE
  if (on_device(dout)) return backward_cuda(node, states, pre, dout, dstates, dpre, sums);
#endif
  backward_cpu(node, states, pre, dout, dstates, dpre, sums);
}

// Calls body(k, state, count) for each longest run of sources k, k + 1, ... whose states are neighbours.
template <class Body>
void for_runs(const Node& node, const Body& body) {
  for (int64_t k = 0; k < node.num_sources;) {
    int64_t end = k + 1;
    while (end < node.num_sources && node.source[end].state == node.source[end - 1].state + 1) ++end;
    body(k, int64_t(node.source[k].state), end - k);
    k = end;
  }
}

Tensor rows(const Tensor& tensor) { return tensor.reshape({-1, tensor.size(-1)}); }
Tensor rows(const Tensor& tensor, int64_t first, int64_t count) {
  return tensor.narrow(0, first, count).view({count * tensor.size(1), tensor.size(2)});
}

class Recurrent : public torch::autograd::Function<Recurrent> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_given, const Tensor& h_given, const Tensor&, at::TensorList rest,
                        const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto weights = rest.slice(call->has_offsets ? 1 : 0);
    const std::vector<Node>& nodes = call->nodes;
    const Tensor x = x_given.contiguous(), h = h_given.contiguous();
    const int64_t length = x.size(0), batch = x.size(1), units = x.size(2), num_nodes = int64_t(nodes.size()) - 1;
    const int64_t kept = call->save ? length : 1;
    const Tensor states = at::empty({kept, 1 + num_nodes, batch, units}, x.options()), out = at::empty_like(x);
    variable_list pre(nodes.size());
    const Tensor from_x = weights[0].narrow(0, 0, units), from_h = weights[0].narrow(0, units, units);
    const bool reads_x = nodes[0].num_sources > 0;
    if (reads_x) pre[0] = at::mm(x.view({length * batch, units}), from_x).view({length, batch, 2 * units});
    for (int64_t t = 1; t <= num_nodes; ++t) pre[t] = at::empty({kept, nodes[t].num_sources, batch, 2 * units}, x.options());

    for (int64_t step = 0; step < length; ++step) {
      const Tensor state = states[call->save ? step : 0];
      if (reads_x) {
        const Tensor before = step == 0 ? h : out[step - 1];
        Tensor z = pre[0][step];
        z.addmm_(before, from_h);
        node_forward(nodes[0], before, z, state[0]);
      }
      for (int64_t t = 1; t <= num_nodes; ++t) {
        const Tensor z = pre[t][call->save ? step : 0];
        for_runs(nodes[t], [&](int64_t k, int64_t first, int64_t count) {
          Tensor product = rows(z, k, count);
          at::mm_out(product, rows(state, first, count), weights[t]);
        });
        node_forward(nodes[t], state, z, state[t]);
      }
      Tensor mean = out[step];
      at::mean_out(mean, state.narrow(0, 1, num_nodes), {0});
    }

    if (call->save) {
      variable_list saved{x, h, out, states};
      saved.insert(saved.end(), pre.begin(), pre.end());
      saved.insert(saved.end(), weights.begin(), weights.end());
      ctx->save_for_backward(saved);
    }
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "OnePathRecurrentCell: double backward is not implemented; call backward without create_graph, or use "
                "advnas_ext.reference.recurrent_cell");
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<Node>& nodes = call->nodes;
    const Tensor &x = saved[0], &h = saved[1], &out = saved[2], &states = saved[3];
    const auto pre = saved.begin() + 4, weights = pre + int64_t(nodes.size());
    const int64_t length = x.size(0), batch = x.size(1), units = x.size(2), num_nodes = int64_t(nodes.size()) - 1;
    const bool reads_x = nodes[0].num_sources > 0;
    const size_t first_weight = kRest + size_t(call->has_offsets);
    const auto wants = [&](int64_t t) { return nodes[t].num_sources > 0 && ctx->needs_input_grad(first_weight + size_t(t)); };
    const bool wants_x = ctx->needs_input_grad(kX), wants_h = ctx->needs_input_grad(kH);
    const bool wants_gates = ctx->needs_input_grad(kGates);
    const bool wants_offsets = call->has_offsets && ctx->needs_input_grad(kRest);
#ifdef ADVNAS_DEVICE
    std::optional<OnDevice> device;
    if (on_device(x)) device.emplace(x);
#endif

    // Gradients of pre-activations: of all steps where a product over them is to come, else of one.
    variable_list dpre(nodes.size());
    const auto steps_of = [&](int64_t t) { return wants(t) || (t == 0 && wants_x) ? length : 1; };
    for (int64_t t = 0; t <= num_nodes; ++t) {
      dpre[t] = at::empty({steps_of(t), nodes[t].num_sources, batch, 2 * units}, x.options());
    }
    const Tensor dstates = at::empty({1 + num_nodes, batch, units}, x.options());
    Tensor dh = at::zeros({batch, units}, x.options());
    const Tensor grad = grads[0].contiguous();
    const Tensor from_h = weights[0].narrow(0, units, units).t();
    const Tensor sums = at::zeros({wants_gates || wants_offsets ? call->first_sum.back() : 0}, x.options().dtype(at::kDouble));
    for (int64_t step = length - 1; step >= 0; --step) {
      const Tensor state = states[step];
      dstates[0].zero_();
      dstates.narrow(0, 1, num_nodes).copy_(dh.add_(grad[step]).div_(num_nodes));
      for (int64_t t = num_nodes; t > 0; --t) {
        const Tensor dz = dpre[t][steps_of(t) == length ? step : 0];
        double* const own = sums.numel() > 0 ? sums.mutable_data_ptr<double>() + call->first_sum[t - 1] : nullptr;
        node_backward(nodes[t], state, pre[t][step], dstates[t], dstates, dz, own);
        for_runs(nodes[t], [&](int64_t k, int64_t first, int64_t count) {
          rows(dstates, first, count).addmm_(rows(dz, k, count), weights[t].t());
        });
      }
      dh.zero_();
      if (!reads_x) continue;
      const Tensor dz = dpre[0][steps_of(0) == length ? step : 0][0];
      node_backward(nodes[0], step == 0 ? h : out[step - 1], pre[0][step], dstates[0], dh, dz, nullptr);
      if (step > 0 || wants_h) dh.addmm_(dz, from_h);
    }

    variable_list result(first_weight + nodes.size() + 1);  // the call itself is an input too
    if (wants_x) result[kX] = reads_x ? at::mm(rows(dpre[0]), weights[0].narrow(0, 0, units).t()).view_as(x) : at::zeros_like(x);
    if (wants_h) result[kH] = dh;
    if (sums.numel() > 0) {
      const Tensor host = sums.cpu();
      const auto pick = [&](const std::vector<int64_t>& places) {
        const Tensor values = at::zeros({int64_t(places.size())}, at::kDouble);
        for (size_t i = 0; i < places.size(); ++i) {
          if (places[i] >= 0) values.mutable_data_ptr<double>()[i] = host.const_data_ptr<double>()[places[i]];
        }
        return values.to(call->gates_type);
      };
      if (wants_gates) result[kGates] = pick(call->gate_sums).reshape(call->gates_shape);
      if (wants_offsets) result[kRest] = pick(call->offset_sums);
    }
    for (int64_t t = 0; t <= num_nodes; ++t) {
      if (!wants(t)) continue;
      variable_list sources;
      if (t == 0) {
        sources = {at::cat({x, length == 0 ? x : at::cat({h.unsqueeze(0), out.narrow(0, 0, length - 1)})}, 2)};
      } else {
        for_runs(nodes[t], [&](int64_t, int64_t first, int64_t count) { sources.push_back(states.narrow(1, first, count)); });
      }
      result[first_weight + size_t(t)] = at::mm(rows(at::cat(sources, 1)).t(), rows(dpre[t]));
    }
    return result;
  }
};

// What the path makes of the cell: the sources of each node that run, with their gates, and where the sums are that they give.
// Every node reaches the output but node 0, which only its edges carry on.
void plan(Call& call, const Tensor& gates, const std::vector<int64_t>& ops, int64_t num_nodes, int64_t batch, int64_t units) {
  const Tensor values = gates.detach().to(at::kDouble).contiguous();
  const int64_t picks = gates.size(1);
  call.nodes.assign(size_t(num_nodes + 1), Node{batch, units, 0, {}});
  call.gate_sums.assign(ops.size(), -1);
  int64_t edge = 0, sum = 0;
  bool reads_first = false;
  for (int64_t t = 1; t <= num_nodes; ++t) {
    Node& node = call.nodes[t];
    for (int32_t source = 0; source < t; ++source, ++edge) {
      RecurrentSource<double> next{source, 0, {}};
      for (int64_t place = edge * picks; place < (edge + 1) * picks; ++place) {
        const double gate = values.const_data_ptr<double>()[place];
        const int64_t op = ops[place];
        if (op == kNumRecurrentOps || (gate == 0 && !gates.requires_grad())) continue;
        next.picked |= 1u << op;
        next.gate[op] = gate;
        call.gate_sums[place] = sum + int64_t(node.num_sources) * kNumRecurrentOps + op;
      }
      if (next.picked == 0) continue;
      node.source[node.num_sources++] = next;
      reads_first |= source == 0;
    }
    call.first_sum.push_back(sum);
    sum += num_recurrent_sums(node);
    call.offset_sums.insert(call.offset_sums.end(), t, sum - 1);
  }
  call.first_sum.push_back(sum);
  if (reads_first) {
    call.nodes[0].num_sources = 1;
    call.nodes[0].source[0] = {0, 1u << kRecurrentTanh, {}};
    call.nodes[0].source[0].gate[kRecurrentTanh] = 1;
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

Tensor recurrent(const Tensor& x, const Tensor& h, const Tensor& gates, const std::optional<Tensor>& offsets,
                 const std::vector<int64_t>& ops, const std::vector<Tensor>& weights) {
  const int64_t num_nodes = int64_t(weights.size()) - 1, num_edges = num_nodes * (num_nodes + 1) / 2;
  TORCH_CHECK_VALUE(num_nodes >= 1 && num_nodes <= kMaxRecurrentSources, "OnePathRecurrentCell: num_nodes must be from 1 to ",
                    kMaxRecurrentSources, ", got ", num_nodes);
  TORCH_CHECK_VALUE(has_kernels(x) && x.dim() == 3 && x.size(2) > 0, "OnePathRecurrentCell: no kernels for x of ",
                    x.scalar_type(), " and shape ", x.sizes(), " on ", x.device());
  const int64_t units = x.size(2);
  const auto check = [&](const char* what, int64_t index, const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.device() == x.device() && tensor.scalar_type() == x.scalar_type(),
                      "OnePathRecurrentCell: ", what, index < 0 ? "" : "[" + std::to_string(index) + "]", " must be ",
                      x.scalar_type(), " of shape ", shape, " on ", x.device(), ", got ", tensor.scalar_type(), " of shape ",
                      tensor.sizes(), " on ", tensor.device());
  };
  check("h", -1, h, {x.size(1), units});
  for (int64_t t = 0; t <= num_nodes; ++t) check("weights", t, weights[t], {t == 0 ? 2 * units : units, 2 * units});
  TORCH_CHECK_VALUE(gates.is_cpu() && gates.dim() == 2 && gates.size(0) == num_edges && gates.numel() == int64_t(ops.size()),
                    "OnePathRecurrentCell: gates must have shape [", num_edges, ", picks] on the host and an op each, got ",
                    gates.sizes(), " on ", gates.device(), " and ", ops.size(), " ops");
  for (const int64_t op : ops) {
    TORCH_CHECK_VALUE(op >= 0 && op <= kNumRecurrentOps, "OnePathRecurrentCell: unknown operation ", op);
  }
#ifdef ADVNAS_DEVICE
  std::optional<OnDevice> device;
  if (on_device(x)) device.emplace(x);
#endif
  const auto call = c10::make_intrusive<Call>();
  plan(*call, gates, ops, num_nodes, x.size(1), units);
  call->gates_type = gates.scalar_type();
  call->gates_shape = gates.sizes().vec();
  call->has_offsets = offsets.has_value();
  std::vector<Tensor> rest;
  if (offsets) rest.push_back(*offsets);
  rest.insert(rest.end(), weights.begin(), weights.end());
  call->save =
      at::GradMode::is_enabled() && (x.requires_grad() || h.requires_grad() || gates.requires_grad() ||
                                     std::any_of(rest.begin(), rest.end(), [](const Tensor& t) { return t.requires_grad(); }));
  return Recurrent::apply(x, h, gates, at::TensorList(rest), call);
}

}  // namespace advnas
