#include <ATen/Dispatch.h>

#include <numeric>

#include "buffers.h"
#include "convolver.h"
#include "images.h"
#include "kernels/batch_norm_math.h"

namespace advnas {
namespace {

using at::Tensor;

// Coefficients of dz = of_dy dy + of_z z + constant.
template <class T>
struct Coefficients {
  std::vector<T> of_dy, of_z, constant;
};

template <class T>
class Backward {
 public:
  Backward(const Pass& pass, const Tensor& dy, const Wanted& wanted)
      : pass_(pass),
        wanted_(wanted),
        last_(pass.plan.num_nodes - 1),
        batch_(dy.size(0)),
        channels_(dy.size(1)),
        shape_(shape_of(dy)),
        pixels_(shape_.height * shape_.width),
        gradient_(pass.plan.num_nodes),
        coefficients_(pass.convolutions.size()) {
    gradient_[last_] = dy;
    result_.gates.resize(pass.gates.size());
    result_.offsets.resize(pass.plan.num_nodes * last_ / 2);
    result_.weight.resize(pass.convolutions.size());
    for (auto* rows : {&result_.gamma, &result_.beta, &result_.bias}) rows->resize(pass.convolutions.size());
  }

  Gradients run() {
    for (int64_t node = last_; node > 0; --node) {
      if (pass_.plan.live[node]) run_node(node);
    }
    if (wanted_.x || wanted_.gates || any_weight(0)) run_node(0);
    if (wanted_.x) result_.x = gradient_[0];
    return result_;
  }

 private:
  // A convolution that leaves the node.
  struct Leaving {
    Convolver<T> convolver;
    int64_t convolution;
    Tensor dy;
  };
  // Sums over one node's gradient for the convolutions that arrive there.
  struct Arriving {
    std::vector<Term> terms;
    std::vector<std::vector<T>> means;
    Row partial;  // [batch, (1 + terms) * channels]
  };

  const Convolution& of(const Term& term) const { return pass_.convolutions[term.convolution]; }

  bool any_weight(int64_t node) const {
    const auto terms = pass_.plan.out_of(node);
    return std::any_of(terms.begin(), terms.end(),
                       [&](const Term& term) { return term.convolution >= 0 && wanted_.weight[term.convolution]; });
  }

  void run_node(int64_t node) {
    const auto& kernels = cpu::kernels<T>();
    const bool gather = node < last_;
    std::vector<int64_t> scaled_gates, pooled_gates;
    const Gathered<T> sources = gather ? gather_gradient(node, scaled_gates, pooled_gates) : Gathered<T>();
    Row scaled_partial(batch_ * sources.num_scaled()), pooled_partial(batch_ * sources.num_pooled());
    std::vector<Leaving> leaving = convolutions_that_leave(node);
    Arriving arriving = convolutions_that_arrive(node);
    if (gather) gradient_[node] = empty_buffer(gradient_[last_].sizes(), gradient_[last_].scalar_type());
    int64_t frame_size = 0, workspace_size = 0;
    for (const Leaving& out : leaving) {
      frame_size = std::max(frame_size, out.convolver.frame());
      workspace_size = std::max(workspace_size, out.convolver.workspace());
    }

    for_ranges(batch_, [&](int64_t range, int64_t begin, int64_t end) {
      std::vector<T> row(sources.workspace(shape_)), frame(frame_size), dz(frame_size), workspace(workspace_size);
      std::vector<T> drelu(leaving.empty() ? 0 : pixels_ * channels_);
      for (int64_t i = begin; i < end; ++i) {
        const T* const x = gather && pass_.nodes[node].defined() ? image<T>(pass_.nodes[node], i) : nullptr;
        if (gather) {
          sources.with_image(i, [&](const Sources<T>& images) {
            kernels.node_backward(images, x, mutable_image<T>(gradient_[node], i),
                                  wanted_.gates ? scaled_partial.data() + i * sources.num_scaled() : nullptr,
                                  wanted_.gates ? pooled_partial.data() + i * sources.num_pooled() : nullptr, shape_, row.data());
          });
        }
        for (const Leaving& out : leaving) {
          const Coefficients<T>& of = coefficients_[out.convolution];
          const int64_t size = out.convolver.shape().size;
          kernels.pad_gradient(image<T>(out.dy, i), image<T>(pass_.z[out.convolution], i), of.of_dy.data(), of.of_z.data(),
                               of.constant.data(), dz.data(), shape_.height, shape_.width, channels_, size);
          if (out.convolver.gives_input_gradient()) {
            out.convolver.run(dz.data(), drelu.data(), workspace.data());
            kernels.add_masked(drelu.data(), x, mutable_image<T>(gradient_[node], i), pixels_ * channels_);
          }
          if (out.convolver.gives_weight_gradient()) {
            kernels.pad_relu(x, frame.data(), shape_.height, shape_.width, channels_, size);
            out.convolver.add_weight_gradient(range, frame.data(), dz.data(), workspace.data());
          }
        }
        sum_arriving(arriving, node, i);
      }
    });

    finish_gates(scaled_partial, scaled_gates);
    finish_gates(pooled_partial, pooled_gates);
    for (const Leaving& out : leaving) {
      if (out.convolver.gives_weight_gradient()) result_.weight[out.convolution] = out.convolver.weight_gradient();
    }
    if (!arriving.partial.empty()) finish_arriving(arriving, node);
  }

  // The gradient of `node` but for its convolutions: each term's gradient is that of its target.
  Gathered<T> gather_gradient(int64_t node, std::vector<int64_t>& scaled_gates, std::vector<int64_t>& pooled_gates) const {
    Gathered<T> sources;
    for (const Term& term : pass_.plan.out_of(node)) {
      const double gate = pass_.gates[term.gate];
      if (term.piece == Piece::kIdentity) {
        sources.add_scaled(gradient_[term.target], Row(channels_, gate));
        scaled_gates.push_back(term.gate);
      } else if (term.piece == Piece::kAvgPool) {
        sources.add_pooled(gradient_[term.target], gate);
        pooled_gates.push_back(term.gate);
      }
    }
    return sources;
  }

  std::vector<Leaving> convolutions_that_leave(int64_t node) const {
    std::vector<Leaving> leaving;
    for (const Term& term : pass_.plan.out_of(node)) {
      if (term.convolution < 0) continue;
      Leaving out{Convolver<T>(shape_, of(term).weight), term.convolution, gradient_[term.target]};
      if (node > 0 || wanted_.x) out.convolver.prepare_input_gradient();
      if (wanted_.weight[term.convolution]) out.convolver.prepare_weight_gradient(num_ranges(batch_));
      if (out.convolver.gives_input_gradient() || out.convolver.gives_weight_gradient()) leaving.push_back(out);
    }
    return leaving;
  }

  Arriving convolutions_that_arrive(int64_t node) const {
    Arriving arriving;
    for (const Term& term : pass_.plan.into(node)) {
      if (term.convolution < 0) continue;
      arriving.terms.push_back(term);
      arriving.means.push_back(cast<T>(of(term).mean));
    }
    if (node > 0 && (wanted_.offsets || !arriving.terms.empty()))
      arriving.partial.resize(batch_ * (1 + arriving.terms.size()) * channels_);
    return arriving;
  }

  void sum_arriving(Arriving& arriving, int64_t node, int64_t i) const {
    if (arriving.partial.empty()) return;
    std::vector<const T*> z, means;
    std::vector<double*> s2;
    double* const s1 = arriving.partial.data() + i * (1 + arriving.terms.size()) * channels_;
    for (size_t k = 0; k < arriving.terms.size(); ++k) {
      z.push_back(image<T>(pass_.z[arriving.terms[k].convolution], i));
      means.push_back(arriving.means[k].data());
      s2.push_back(s1 + (1 + k) * channels_);
    }
    cpu::kernels<T>().node_sums(image<T>(gradient_[node], i), z.data(), means.data(), int64_t(z.size()), pixels_, channels_, s1,
                                s2.data());
  }

  void finish_gates(const Row& partial, const std::vector<int64_t>& gates) {
    const Row sums = sum_images(partial, int64_t(gates.size()));
    for (size_t k = 0; k < gates.size(); ++k) result_.gates[gates[k]] += sums[k];
  }

  // Offsets of the edges into `node`, and batch norm of the convolutions that arrive: gradients of gates and parameters, and what
  // their own gradients need.
  void finish_arriving(const Arriving& arriving, int64_t node) {
    const Row sums = sum_images(arriving.partial, int64_t(1 + arriving.terms.size()) * channels_);
    const auto first_edge = result_.offsets.begin() + node * (node - 1) / 2;
    std::fill_n(first_edge, node, std::accumulate(sums.begin(), sums.begin() + channels_, 0.0));
    const double count = double(std::max<int64_t>(1, batch_ * pixels_));
    for (size_t k = 0; k < arriving.terms.size(); ++k) {
      const Term& term = arriving.terms[k];
      const Convolution& convolution = of(term);
      const double gate = pass_.gates[term.gate];
      Row of_dy(channels_), of_z(channels_), constant(channels_), dgamma(channels_), dbeta(channels_), dbias(channels_);
      for (int64_t c = 0; c < channels_; ++c) {
        const double gamma = convolution.gamma[c], rstd = convolution.rstd[c], mean = convolution.mean[c];
        const double s1 = sums[c], s2 = sums[(1 + k) * channels_ + c], scale = gate * gamma * rstd;
        const InputGradient map =
            pass_.use_running_stats ? InputGradient{scale, 0, 0} : batch_norm_backward(scale, mean, rstd, s1, s2, count);
        of_dy[c] = map.of_dy;
        of_z[c] = map.of_z;
        constant[c] = map.constant;
        dgamma[c] = gate * rstd * s2;
        dbeta[c] = gate * s1;
        dbias[c] = scale * s1;
        result_.gates[term.gate] += gamma * rstd * s2 + convolution.beta[c] * s1;
      }
      coefficients_[term.convolution] = {cast<T>(of_dy), cast<T>(of_z), cast<T>(constant)};
      result_.gamma[term.convolution] = dgamma;
      result_.beta[term.convolution] = dbeta;
      // Batch statistics cancel the convolution's bias: its gradient is 0 and is left out.
      if (pass_.use_running_stats) result_.bias[term.convolution] = dbias;
    }
  }

  const Pass& pass_;
  const Wanted& wanted_;
  const int64_t last_, batch_, channels_;
  const ImageShape shape_;
  const int64_t pixels_;
  std::vector<Tensor> gradient_;               // of each node
  std::vector<Coefficients<T>> coefficients_;  // of each convolution
  Gradients result_;
};

}  // namespace

Gradients run_backward(const Pass& pass, const Tensor& dy, const Wanted& wanted) {
  return AT_DISPATCH_FLOATING_TYPES(dy.scalar_type(), "cell_backward",
                                    [&] { return Backward<scalar_t>(pass, dy, wanted).run(); });
}

}  // namespace advnas
