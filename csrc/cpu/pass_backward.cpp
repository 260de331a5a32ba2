#include <ATen/Dispatch.h>

#include <numeric>

#include "convolver.h"
#include "cpu_pass.h"

namespace advnas {
namespace {

using at::Tensor;

template <class T>
class CpuBackward {
 public:
  CpuBackward(Pass& pass, const CpuState& state, const Tensor& dy, const Wanted& wanted)
      : pass_(pass),
        state_(state),
        wanted_(wanted),
        needs_(pass, wanted),
        read_last_(gradients_read_last_at(pass.plan)),
        last_(pass.plan.num_nodes - 1),
        batch_(pass.batch),
        gates_(pass.gates.size()),
        offsets_(pass.num_offsets),
        gradient_(pass.plan.num_nodes),
        norms_(pass.convolutions.size()) {
    gradient_[last_] = dy.contiguous(at::MemoryFormat::ChannelsLast);
    const size_t convolutions = pass.convolutions.size();
    for (auto* tensors : {&result_.weight, &result_.depthwise, &result_.gamma, &result_.beta, &result_.bias}) {
      tensors->resize(convolutions);
    }
  }

  // Weights of a node's convolutions are packed, and weight gradients of the last node finished, while another node runs.
  Gradients run() {
    Leaving leaving = convolutions_that_leave(last_);
    run_now(tasks_);
    for (int64_t node = last_; node >= 0;) {
      int64_t next = node - 1;
      while (next >= 0 && !pass_.plan.live[next]) --next;
      Leaving later = next < 0 ? Leaving() : convolutions_that_leave(next);
      const bool runs = needs_.of(node) || needs_.gates_out_of(node) || any_weight(node);
      runs ? run_node(node, leaving) : run_now(tasks_);
      for (const int64_t read : read_last_[node]) gradient_[read] = Tensor();
      forget_read_backward(pass_, node);
      leaving = std::move(later);
      node = next;
    }
    run_now(tasks_);
    if (wanted_.x) result_.x = gradient_[0];
    if (wanted_.gates) result_.gates = tensor_of(gates_);
    if (wanted_.offsets) result_.offsets = tensor_of(offsets_);
    return result_;
  }

 private:
  // The convolutions that leave a node, and how they take the batch.
  struct Leaving {
    std::vector<Siblings<T>> siblings;
    int64_t group = 1;
    std::vector<Share> shares;
  };
  // What a convolution's gradient is made of.
  struct Outgoing {
    ImageViews<const T> dy, z;
    const NormGradient<std::vector<T>>& norm;

    OutputGradient<T> at(int64_t i) const { return {dy[i], z[i], pointers(norm)}; }
  };
  // Sums over one node's gradient for the convolutions that arrive there.
  struct Arriving {
    std::vector<Term> terms;
    std::vector<ImageViews<const T>> z;
    std::vector<std::vector<T>> means;
    Row partial;  // [batch, (1 + terms) * channels]
  };

  const Convolution& of(const Term& term) const { return pass_.convolutions[term.convolution]; }

  bool any_weight(int64_t node) const {
    const auto& terms = pass_.plan.out_of[node];
    return std::any_of(terms.begin(), terms.end(),
                       [&](const Term& term) { return term.convolution >= 0 && wanted_.weight[term.convolution]; });
  }

  void run_node(int64_t node, const Leaving& leaving) {
    const auto& kernels = cpu::kernels<T>();
    const ImageShape& shape = pass_.shapes[node];
    const bool gather = node < last_ && (needs_.of(node) || needs_.gates_out_of(node));
    std::vector<int64_t> gates;
    const Gathered<T> sources = gather ? gather_gradient(node, gates) : Gathered<T>();
    const bool sums_gates = needs_.gates_out_of(node);
    Row gate_partial(sums_gates ? batch_ * sources.num() : 0);
    Arriving arriving = convolutions_that_arrive(node);
    if (gather) gradient_[node] = empty_images(batch_, shape, pass_.type);
    const bool recomputed = state_.recomputed[node] && (!leaving.siblings.empty() || needs_.value_of(node));
    Row bias(shape.channels);
    const Gathered<T> parts = recomputed ? gather_value<T>(pass_, state_, node, bias) : Gathered<T>();
    const auto typed_bias = cast<T>(bias);
    const ImageViews<const T> x(pass_.nodes[node]), gradient(gradient_[node]);
    const ImageViews<T> dx(gather ? gradient_[node] : Tensor());
    std::vector<std::vector<Outgoing>> outgoing;
    for (const Siblings<T>& siblings : leaving.siblings) outgoing.push_back(outgoing_of(siblings));
    int64_t workspace = std::max(sources.workspace(shape), parts.workspace(shape));
    for (const auto& siblings : leaving.siblings) workspace = std::max(workspace, siblings.convolver->workspace(leaving.group));
    const int64_t values = recomputed ? leaving.group * elements(shape) : 0;

    const auto run = [&](int64_t share, int64_t first, int64_t images, T* made) {
      T* const space = made + values;
      for (int64_t i = 0; recomputed && i < images; ++i) {
        parts.with_image(first + i, [&](const Sources<T>& of_image) {
          kernels.node_forward(of_image, typed_bias.data(), made + i * elements(shape), shape, space);
        });
      }
      const auto value = [&](int64_t i) { return recomputed ? made + (i - first) * elements(shape) : x[i]; };
      // Where no other operation leaves the node, its first convolution writes the gradient instead of adding to it.
      const bool zero = gather && sources.num() == 0 && leaving.siblings.empty();
      for (int64_t i = first; (sources.num() > 0 || zero) && i < first + images; ++i) {
        double* const partial = gate_partial.empty() ? nullptr : gate_partial.data() + i * sources.num();
        sources.with_image(
            i, [&](const Sources<T>& of_image) { kernels.node_backward(of_image, value(i), dx[i], partial, shape, space); });
      }
      for (size_t k = 0; k < outgoing.size(); ++k) {
        OutputGradient<T> dz[kMostSiblings];
        std::transform(outgoing[k].begin(), outgoing[k].end(), dz, [&](const Outgoing& out) { return out.at(first); });
        leaving.siblings[k].convolver->backward(share, first > leaving.shares[share].first, value(first), dz, dx[first],
                                                sources.num() > 0 || k > 0, images, space);
      }
      for (int64_t i = first; i < first + images; ++i) sum_arriving(arriving, gradient[i], shape, i);
    };
    for_groups<T>(leaving.shares, leaving.group, values + workspace, tasks_, run);

    if (sums_gates) {
      const Row sums = sum_images(gate_partial, int64_t(gates.size()));
      for (size_t k = 0; k < gates.size(); ++k) {
        if (gates[k] >= 0) gates_[gates[k]] += sums[k];
      }
    }
    for (const Siblings<T>& siblings : leaving.siblings) {
      for (size_t k = 0; k < siblings.terms.size(); ++k) {
        const int64_t convolution = siblings.terms[k].convolution;
        std::tie(result_.weight[convolution], result_.depthwise[convolution]) = siblings.convolver->weight_gradients(k, tasks_);
      }
    }
    if (!arriving.partial.empty()) finish_arriving(arriving, node);
  }

  // The gradient of `node` but for its convolutions: each term's gradient is that of its target.
  Gathered<T> gather_gradient(int64_t node, std::vector<int64_t>& gates) const {
    Gathered<T> sources;
    for (const Term& term : pass_.plan.out_of[node]) {
      if (term.convolution >= 0 || !gradient_[term.target].defined()) continue;
      const Row gate(pass_.shapes[node].channels, pass_.gate_of(term));
      sources.add(gradient_[term.target], gate, term.piece.arrival);
      gates.push_back(term.gate);
    }
    return sources;
  }

  Leaving convolutions_that_leave(int64_t node) {
    const auto kind = [&](const Term& term) { return wanted_.weight[term.convolution] ? 1 : needs_.of(node) ? 0 : -1; };
    Leaving leaving;
    leaving.siblings = siblings_that_leave<T>(pass_, node, kind);
    int64_t sums = 0;
    for (const Siblings<T>& siblings : leaving.siblings) {
      leaving.group = std::max(leaving.group, siblings.convolver->group());
      if (kind(siblings.terms[0]) == 1) sums += siblings.convolver->sum_elements();
    }
    leaving.shares = cut(batch_, leaving.group, sums * int64_t(sizeof(T)));
    for (const Siblings<T>& siblings : leaving.siblings) {
      siblings.convolver->prepare_backward(needs_.of(node), kind(siblings.terms[0]) == 1, int64_t(leaving.shares.size()), tasks_);
    }
    return leaving;
  }

  std::vector<Outgoing> outgoing_of(const Siblings<T>& siblings) const {
    std::vector<Outgoing> outgoing;
    for (const Term& term : siblings.terms) {
      outgoing.push_back({ImageViews<const T>(gradient_[term.target]), ImageViews<const T>(pass_.z[term.convolution]),
                          norms_[term.convolution]});
    }
    return outgoing;
  }

  Arriving convolutions_that_arrive(int64_t node) const {
    Arriving arriving;
    for (const Term& term : pass_.plan.into[node]) {
      if (term.convolution < 0 || !needs_.of(term)) continue;
      arriving.terms.push_back(term);
      arriving.z.emplace_back(pass_.z[term.convolution]);
      arriving.means.push_back(cast<T>(state_.norms[term.convolution].mean));
    }
    if (needs_.offset_into(node) || !arriving.terms.empty()) {
      arriving.partial.resize(batch_ * int64_t(1 + arriving.terms.size()) * pass_.shapes[node].channels);
    }
    return arriving;
  }

  static void sum_arriving(Arriving& arriving, const T* gradient, const ImageShape& shape, int64_t i) {
    if (arriving.partial.empty()) return;
    const int64_t num = int64_t(arriving.terms.size());
    Pointers<const T*> z, means;
    Pointers<double*> s2;
    double* const s1 = arriving.partial.data() + i * (1 + num) * shape.channels;
    for (int64_t k = 0; k < num; ++k) {
      z.push_back(arriving.z[k][i]);
      means.push_back(arriving.means[k].data());
      s2.push_back(s1 + (1 + k) * shape.channels);
    }
    cpu::kernels<T>().node_sums(gradient, z.data(), means.data(), num, shape.height * shape.width, shape.channels, s1, s2.data());
  }

  // Offsets of the edges into `node`, and batch norm of the convolutions that arrive: gradients of gates and parameters, and what
  // their own gradients need.
  void finish_arriving(const Arriving& arriving, int64_t node) {
    const ImageShape& shape = pass_.shapes[node];
    const int64_t channels = shape.channels;
    const Row sums = sum_images(arriving.partial, int64_t(1 + arriving.terms.size()) * channels);
    for (size_t k = 0; k < pass_.offset_targets.size(); ++k) {
      if (pass_.offset_targets[k] == node) {
        offsets_[k % offsets_.size()] += std::accumulate(sums.begin(), sums.begin() + channels, 0.0);
      }
    }
    for (size_t k = 0; k < arriving.terms.size(); ++k) {
      const auto [term, convolution] = std::pair(arriving.terms[k], arriving.terms[k].convolution);
      const NormGradients gradients =
          gradients_of(of(term).statistics, state_.norms[convolution], pass_.gate_of(term), sums.data(),
                       sums.data() + int64_t(1 + k) * channels, batch_ * shape.height * shape.width);
      norms_[convolution] = cast<T>(gradients.input);
      if (term.gate >= 0) gates_[term.gate] += gradients.dgate;
      if (of(term).gamma.defined()) result_.gamma[convolution] = tensor_of(gradients.dgamma);
      if (of(term).beta.defined()) result_.beta[convolution] = tensor_of(gradients.dbeta);
      // Batch statistics cancel the convolution's bias: pass.cpp adds its gradient.
      const bool has_bias = of(term).bias.defined() && of(term).statistics != Statistics::kBatch;
      if (has_bias) result_.bias[convolution] = tensor_of(gradients.dbias);
    }
  }

  Pass& pass_;
  const CpuState& state_;
  const Wanted& wanted_;
  const Needs needs_;
  const std::vector<std::vector<int64_t>> read_last_;
  const int64_t last_, batch_;
  Row gates_, offsets_;                              // complete only if wanted
  std::vector<Tensor> gradient_;                     // of each node
  std::vector<NormGradient<std::vector<T>>> norms_;  // of each convolution
  BackgroundTasks tasks_;
  Gradients result_;
};

}  // namespace

Gradients run_cpu_backward(Pass& pass, const CpuState& state, const Tensor& dy, const Wanted& wanted) {
  return AT_DISPATCH_FLOATING_TYPES(dy.scalar_type(), "cell_backward",
                                    [&] { return CpuBackward<scalar_t>(pass, state, dy, wanted).run(); });
}

}  // namespace advnas
