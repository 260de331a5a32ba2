// The executor of a cell. Forward, node by node: the convolutions into a node, then one pass that normalises, gates, pools and adds
// everything that arrives there. Backward, the same in reverse: one pass over a node's gradient for the sums that batch norm and the
// gates need, the convolutions' gradients, then one pass that gathers the gradient of the node before.
#include "cell.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/batch_norm_math.h"
#include "node.h"

namespace advnas {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

// What one call needs beside its tensors.
struct Call : torch::CustomClassHolder {
  Plan plan;
  // Place among the tensors that autograd sees of each convolution's tensors; -1 for absent ones, which autograd does not take.
  std::vector<int64_t> place;
  bool use_running_stats, save;
  double eps, momentum;
};

Row row_of(const Tensor& tensor, int64_t channels, double value) {
  if (!tensor.defined()) return Row(channels, value);
  const Tensor doubles = tensor.detach().to(at::kDouble).contiguous();
  return {doubles.const_data_ptr<double>(), doubles.const_data_ptr<double>() + channels};
}

Tensor tensor_of(const Row& row, const at::TensorOptions& options) {
  Tensor tensor = at::empty({int64_t(row.size())}, options.dtype(at::kDouble));
  std::copy(row.begin(), row.end(), tensor.mutable_data_ptr<double>());
  return tensor.to(options.dtype());
}

// A convolution's tensors, by name.
struct Convolution {
  Convolution(const Call& call, at::TensorList tensors, int64_t index) {
    for (int64_t which = 0; which < kNumConvolutionTensors; ++which) {
      const int64_t place = call.place[index * kNumConvolutionTensors + which];
      if (place >= 0) all[which] = tensors[place];
    }
    channels = all[kWeight].size(0);
  }
  Row bias() const { return row_of(all[kBias], channels, 0); }
  Row gamma() const { return row_of(all[kGamma], channels, 1); }
  Row beta() const { return row_of(all[kBeta], channels, 0); }
  std::array<Tensor, kNumConvolutionTensors> all;
  int64_t channels;
};

// Batch norm's statistics of one convolution's output z, which is without the convolution's bias: batch statistics cancel it.
struct Statistics {
  Row mean, rstd;
};

Statistics batch_statistics(const Tensor& z, const Convolution& convolution, const Call& call) {
  const int64_t count = z.numel() / z.size(1);
  TORCH_CHECK_VALUE(count != 1, "OnePathCell: batch statistics need more than one value per channel, got x of shape ", z.sizes(),
                    "; use more or larger images, or running statistics and eval()");
  const Moments moments = channel_moments(z);
  Statistics statistics{moments.mean, moments.variance};
  for (double& v : statistics.rstd) v = 1 / std::sqrt(v + call.eps);
  const Tensor& running_mean = convolution.all[kRunningMean];
  if (running_mean.defined() && count > 0) {
    const Row bias = convolution.bias();
    Row mean = moments.mean, variance = moments.variance;
    for (size_t c = 0; c < mean.size(); ++c) {
      mean[c] += bias[c];
      variance[c] *= double(count) / double(count - 1);
    }
    running_mean.lerp_(tensor_of(mean, running_mean.options()), call.momentum);
    convolution.all[kRunningVar].lerp_(tensor_of(variance, running_mean.options()), call.momentum);
    convolution.all[kBatchesTracked].add_(1);
  }
  return statistics;
}

Statistics running_statistics(const Convolution& convolution, const Call& call) {
  Statistics statistics{row_of(convolution.all[kRunningMean], convolution.channels, 0),
                        row_of(convolution.all[kRunningVar], convolution.channels, 1)};
  const Row bias = convolution.bias();
  for (int64_t c = 0; c < convolution.channels; ++c) {
    statistics.mean[c] -= bias[c];
    statistics.rstd[c] = 1 / std::sqrt(statistics.rstd[c] + call.eps);
  }
  return statistics;
}

Tensor convolve(const Tensor& relu, const Tensor& weight) {
  const int64_t padding = weight.size(2) / 2;
  return at::convolution(relu, weight, {}, {1, 1}, {padding, padding}, {1, 1}, false, {0, 0}, 1).contiguous(kLayout);
}

// {gradient of the ReLU's output, gradient of the weight}; undefined where not wanted.
std::pair<Tensor, Tensor> convolve_backward(const Tensor& dz, const Tensor& relu, const Tensor& weight, bool want_input,
                                            bool want_weight) {
  const int64_t padding = weight.size(2) / 2;
  auto [dx, dweight, dbias] = at::convolution_backward(dz, relu, weight, at::OptionalIntArrayRef(), {1, 1}, {padding, padding},
                                                       {1, 1}, false, {0, 0}, 1, {want_input, want_weight, false});
  if (want_input) dx = dx.contiguous(kLayout);
  return {dx, dweight};
}

// ReLU of a node, computed when the first convolution asks for it.
class Rectified {
 public:
  explicit Rectified(const std::vector<Tensor>& nodes) : nodes_(nodes), relus_(nodes.size()) {}
  const Tensor& operator[](int64_t node) {
    if (!relus_[node].defined()) relus_[node] = at::relu(nodes_[node]);
    return relus_[node];
  }

 private:
  const std::vector<Tensor>& nodes_;
  std::vector<Tensor> relus_;
};

// Saved for the backward pass, in this order: x and the inner nodes; then for each convolution that ran kSaved tensors.
enum Saved { kSavedWeight, kSavedGamma, kSavedBeta, kSavedZ, kSavedMean, kSavedRstd, kNumSaved };

class Cell : public torch::autograd::Function<Cell> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gates, at::TensorList tensors,
                        const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Plan& plan = call->plan;
    const int64_t last = plan.num_nodes - 1, channels = x.size(1);
    const Row gate = row_of(gates.reshape(-1), gates.numel(), 0);
    std::vector<Tensor> nodes(plan.num_nodes);
    std::vector<Tensor> saved(last + call->place.size() / kNumConvolutionTensors * kNumSaved);
    nodes[0] = x.contiguous(kLayout);
    Rectified relu(nodes);
    for (int64_t target = 1; target <= last; ++target) {
      std::vector<Scaled> scaled;
      std::vector<Pooled> pooled;
      Row bias(channels);
      for (const Term& term : plan.into(target)) {
        if (term.piece == Piece::kIdentity) {
          scaled.push_back({nodes[term.source], Row(channels, gate[term.gate])});
        } else if (term.piece == Piece::kAvgPool) {
          pooled.push_back({nodes[term.source], gate[term.gate]});
        } else {
          const Convolution convolution(*call, tensors, term.convolution);
          const Tensor z = convolve(relu[term.source], convolution.all[kWeight]);
          const Statistics statistics =
              call->use_running_stats ? running_statistics(convolution, *call) : batch_statistics(z, convolution, *call);
          const Row gamma = convolution.gamma(), beta = convolution.beta();
          scaled.push_back({z, Row(channels)});
          for (int64_t c = 0; c < channels; ++c) {
            const ScaleShift map = batch_norm_forward(gate[term.gate], gamma[c], beta[c], statistics.mean[c], statistics.rstd[c]);
            scaled.back().scale[c] = map.scale;
            bias[c] += map.shift;
          }
          if (call->save) {
            Tensor* slot = &saved[last + term.convolution * kNumSaved];
            slot[kSavedWeight] = convolution.all[kWeight];
            slot[kSavedGamma] = convolution.all[kGamma];
            slot[kSavedBeta] = convolution.all[kBeta];
            slot[kSavedZ] = z;
            slot[kSavedMean] = tensor_of(statistics.mean, z.options().dtype(at::kDouble));
            slot[kSavedRstd] = tensor_of(statistics.rstd, z.options().dtype(at::kDouble));
          }
        }
      }
      nodes[target] = node_forward(nodes[0], scaled, pooled, bias);
    }
    for (int64_t node = 0; node < last && call->save; ++node) {
      // The backward pass looks at a node's value for ReLU masks and for gate gradients only.
      bool needed = false;
      for (const Term& term : plan.out_of(node)) needed |= term.convolution >= 0 || gates.requires_grad();
      if (needed) saved[node] = nodes[node];
    }
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    saved.insert(saved.begin(), gates);
    ctx->save_for_backward(saved);
    return nodes[last];
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads);
};

variable_list Cell::backward(AutogradContext* ctx, const variable_list& grads) {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "OnePathCell: double backward is not implemented; call backward without create_graph, or use "
              "advnas_ext.reference.cell");
  const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
  const Plan& plan = call->plan;
  const int64_t last = plan.num_nodes - 1;
  const variable_list saved = ctx->get_saved_variables();
  const Tensor& gates = saved[0];
  const std::vector<Tensor> nodes(saved.begin() + 1, saved.begin() + 1 + last);
  const bool want_x = ctx->needs_input_grad(0), want_gates = ctx->needs_input_grad(1);

  const Row gate = row_of(gates.reshape(-1), gates.numel(), 0);
  Row gate_grad(gates.numel());
  variable_list result(2 + std::count_if(call->place.begin(), call->place.end(), [](int64_t place) { return place >= 0; }) + 1);
  std::vector<Tensor> gradient(plan.num_nodes);
  std::vector<std::vector<Tensor>> masked(plan.num_nodes);
  gradient[last] = grads[0].contiguous(kLayout);
  const int64_t channels = gradient[last].size(1);
  const double count = double(std::max<int64_t>(1, gradient[last].numel() / channels));
  Rectified relu(nodes);

  for (int64_t target = last; target > 0; --target) {
    std::vector<Term> convolutions;
    std::vector<Tensor> z;
    std::vector<Row> mean;
    for (const Term& term : plan.into(target)) {
      if (term.convolution < 0) continue;
      const Tensor* slot = &saved[1 + last + term.convolution * kNumSaved];
      convolutions.push_back(term);
      z.push_back(slot[kSavedZ]);
      mean.push_back(row_of(slot[kSavedMean], channels, 0));
    }
    const Tensor& dy = gradient[target];
    const BatchNormSums sums = convolutions.empty() ? BatchNormSums{} : batch_norm_sums(dy, z, mean);
    for (size_t k = 0; k < convolutions.size(); ++k) {
      const Term& term = convolutions[k];
      const Tensor* slot = &saved[1 + last + term.convolution * kNumSaved];
      const int64_t* place = &call->place[term.convolution * kNumConvolutionTensors];
      const Row gamma = row_of(slot[kSavedGamma], channels, 1), beta = row_of(slot[kSavedBeta], channels, 0);
      const Row rstd = row_of(slot[kSavedRstd], channels, 1);
      Row of_dy(channels), of_z(channels), constant(channels), dgamma(channels), dbeta(channels), dbias(channels);
      for (int64_t c = 0; c < channels; ++c) {
        const double s1 = sums.s1[c], s2 = sums.s2[k][c], scale = gate[term.gate] * gamma[c] * rstd[c];
        const InputGradient map = call->use_running_stats ? InputGradient{scale, 0, 0}
                                                          : batch_norm_backward(scale, mean[k][c], rstd[c], s1, s2, count);
        of_dy[c] = map.of_dy;
        of_z[c] = map.of_z;
        constant[c] = map.constant;
        dgamma[c] = gate[term.gate] * rstd[c] * s2;
        dbeta[c] = gate[term.gate] * s1;
        dbias[c] = scale * s1;
        gate_grad[term.gate] += gamma[c] * rstd[c] * s2 + beta[c] * s1;
      }
      const auto wants = [&](ConvolutionTensor which) { return place[which] >= 0 && ctx->needs_input_grad(2 + place[which]); };
      const auto options = slot[kSavedWeight].options();
      if (wants(kGamma)) result[2 + place[kGamma]] = tensor_of(dgamma, options);
      if (wants(kBeta)) result[2 + place[kBeta]] = tensor_of(dbeta, options);
      // Batch statistics cancel the convolution's bias: its gradient is 0 and is left out.
      if (wants(kBias) && call->use_running_stats) result[2 + place[kBias]] = tensor_of(dbias, options);
      const bool want_source = term.source > 0 || want_x;
      if (!want_source && !wants(kWeight)) continue;
      const Tensor dz = batch_norm_input_gradient(dy, z[k], of_dy, of_z, constant);
      auto [dsource, dweight] = convolve_backward(dz, relu[term.source], slot[kSavedWeight], want_source, wants(kWeight));
      if (want_source) masked[term.source].push_back(dsource);
      result[2 + place[kWeight]] = dweight;
    }

    // Every edge out of the node before has its gradient now.
    const int64_t node = target - 1;
    const std::vector<Term> outgoing = plan.out_of(node);
    if (node == 0 ? !want_x && !want_gates : outgoing.empty()) continue;
    std::vector<Scaled> scaled;
    std::vector<Pooled> pooled;
    std::vector<int64_t> scaled_gates, pooled_gates;
    for (const Term& term : outgoing) {
      if (term.piece == Piece::kIdentity) {
        scaled.push_back({gradient[term.target], Row(channels, gate[term.gate])});
        scaled_gates.push_back(term.gate);
      } else if (term.piece == Piece::kAvgPool) {
        pooled.push_back({gradient[term.target], gate[term.gate]});
        pooled_gates.push_back(term.gate);
      }
    }
    NodeGradient gathered = node_backward(gradient[last], nodes[node], scaled, pooled, masked[node], want_gates);
    gradient[node] = gathered.dx;
    masked[node].clear();
    for (size_t k = 0; k < scaled_gates.size() && want_gates; ++k) gate_grad[scaled_gates[k]] += gathered.scaled_gate_grad[k];
    for (size_t k = 0; k < pooled_gates.size() && want_gates; ++k) gate_grad[pooled_gates[k]] += gathered.pooled_gate_grad[k];
  }
  if (want_x) result[0] = gradient[0];
  if (want_gates) result[1] = tensor_of(gate_grad, gates.options()).reshape(gates.sizes());
  return result;
}

}  // namespace

Tensor cell(const Tensor& x, const Tensor& gates, const std::vector<Piece>& pieces, int64_t num_nodes,
            const std::vector<std::optional<Tensor>>& tensors, bool use_running_stats, double eps, double momentum) {
  const auto call = c10::make_intrusive<Call>();
  call->plan = make_plan(pieces, num_nodes);
  call->use_running_stats = use_running_stats;
  call->eps = eps;
  call->momentum = momentum;
  bool differentiable = x.requires_grad() || gates.requires_grad();
  std::vector<Tensor> present;
  for (const auto& tensor : tensors) {
    call->place.push_back(tensor ? int64_t(present.size()) : -1);
    if (!tensor) continue;
    present.push_back(*tensor);
    differentiable |= tensor->requires_grad();
  }
  call->save = at::GradMode::is_enabled() && differentiable;
  return Cell::apply(x, gates, at::TensorList(present), call);
}

}  // namespace advnas
