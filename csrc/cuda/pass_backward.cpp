#include "cuda_pass.h"

namespace advnas::cuda {
namespace {

template <class T>
class CudaBackward {
 public:
  CudaBackward(Pass& pass, const CudaState& state, const Tensor& dy, const Wanted& wanted)
      : pass_(pass),
        state_(state),
        wanted_(wanted),
        needs_(pass, wanted),
        read_last_(gradients_read_last_at(pass.plan)),
        device_(dy),
        last_(pass.plan.num_nodes - 1),
        like_(dy),
        counter_(counter(dy, device_)),
        gradient_(pass.plan.num_nodes),
        totals_(pass.plan.num_nodes),
        coefficients_(make_rows(pass, dy, kGradientRows, true)),
        scratch_(dy) {
    gradient_[last_] = in_layout(dy);
    for (auto* tensors : {&result_.weight, &result_.depthwise, &result_.gamma, &result_.beta, &result_.bias}) {
      tensors->resize(pass.convolutions.size());
    }
    const auto options = dy.options().dtype(at::kFloat);
    if (wanted.gates) result_.gates = at::zeros({int64_t(pass.gates.size())}, options);
    if (wanted.offsets) none_ = at::zeros({1}, options);
  }

  Gradients run() {
    for (int64_t node = last_; node >= 0; --node) {
      if (!pass_.plan.live[node]) continue;
      run_node(node);
      for (const int64_t read : read_last_[node]) gradient_[read] = Tensor();
      forget_read_backward(pass_, node);
    }
    if (wanted_.x) result_.x = gradient_[0];
    if (wanted_.offsets) {
      std::vector<Tensor> offsets;
      for (const int64_t target : pass_.offset_targets) {
        offsets.push_back(target >= 0 && totals_[target].defined() ? totals_[target] : none_);
      }
      result_.offsets = at::cat(offsets).view({-1, pass_.num_offsets}).sum(0);
    }
    return result_;
  }

 private:
  const Convolution& of(const Term& term) const { return pass_.convolutions[term.convolution]; }
  Runner runner(const Term& term) const { return state_.runners[term.convolution]; }
  const Tensor& either(int64_t node) const { return pass_.nodes[node].defined() ? pass_.nodes[node] : state_.relus[node]; }

  void run_node(int64_t node) {
    const bool wants_input = node < last_ && needs_.of(node);
    std::vector<NodeSource<T>> sources;
    std::vector<Tensor> kept;  // what the sources point to
    for (const Term& term : pass_.plan.out_of[node]) {
      if (term.convolution >= 0) {
        const Tensor dp = convolution_backward(term, wants_input);
        if (!dp.defined()) continue;
        kept.push_back(dp);
        sources.push_back({in<T>(dp), arrival_of(term), 1, nullptr, nullptr});
      } else if (needs_.of(term)) {
        sources.push_back(
            {in<T>(gradient_[term.target]), term.piece.arrival, float(pass_.gate_of(term)), nullptr, gate_gradient(term)});
      }
    }
    if (wants_input) gradient_[node] = new_images(like_, pass_.shapes[node]);
    gather(node, sources, wants_input);
  }

  // Of what a convolution gives back. The library's has spread the gradient already.
  Arrival arrival_of(const Term& term) const {
    if (term.piece.prologue == Prologue::kRelu) return Arrival::kMasked;
    const bool halved = term.piece.prologue == Prologue::kMean2 && runner(term) == Runner::kPointwise;
    return halved ? Arrival::kHalved : Arrival::kIdentity;
  }

  float* gate_gradient(const Term& term) const {
    return wanted_.gates && term.gate >= 0 ? out<float>(result_.gates) + term.gate : nullptr;
  }

  // Launches until all sources are added and all sums taken: the first sums ride on the last sources.
  void gather(int64_t node, const std::vector<NodeSource<T>>& sources, bool writes) {
    const std::vector<NormBackward<T>> sums = sums_of(node);
    const bool total = needs_.offset_into(node);
    if (total) totals_[node] = workspace(like_, 1);
    const Tensor& x = either(node);
    const Tensor& dx = gradient_[node];
    const ImageShape& s = pass_.shapes[node];
    const Images shape{int(like_.size(0)), int(s.height), int(s.width), int(s.channels)};
    size_t source = 0, sum = 0;
    bool left = writes || total || !sums.empty() || !sources.empty();
    while (left) {
      NodeBackward<T> launch{};
      launch.shape = shape;
      // The gradient of the last node is given; afterwards it is what the launch before has left.
      launch.start = node == last_ || source > 0 || sum > 0 ? in<T>(dx) : nullptr;
      launch.x = in<T>(x);
      for (; launch.num < kMaxSources && source < sources.size(); ++source) launch.source[launch.num++] = sources[source];
      const bool complete = source == sources.size();
      if (writes && sum == 0) launch.dx = out<T>(dx);
      if (complete && sum == 0 && total) launch.total = out<float>(totals_[node]);
      for (; complete && launch.num_sums < kMaxSums && sum < sums.size(); ++sum) launch.sum[launch.num_sums++] = sums[sum];
      const bool products =
          std::any_of(launch.source, launch.source + launch.num, [](const NodeSource<T>& s) { return s.gate_grad != nullptr; });
      if (products || launch.num_sums > 0 || launch.total != nullptr) {
        launch.partial = scratch_.floats(node_backward_workspace(shape));
        launch.counter = out<unsigned>(counter_);
      }
      node_backward(launch, device_.stream());
      left = !complete || sum < sums.size();
    }
  }

  // Of the convolutions that arrive at `node`: what their own backward passes need of its gradient.
  std::vector<NormBackward<T>> sums_of(int64_t node) {
    std::vector<NormBackward<T>> sums;
    for (const Term& term : pass_.plan.into[node]) {
      if (term.convolution < 0 || !needs_.of(term)) continue;
      const Convolution& convolution = of(term);
      const int64_t channels = pass_.shapes[node].channels, k = term.convolution;
      const bool of_batch = convolution.statistics == Statistics::kBatch;
      const auto row_if = [&](bool wanted) { return wanted ? workspace(like_, channels) : Tensor(); };
      result_.gamma[k] = row_if(convolution.gamma.defined());
      result_.beta[k] = row_if(convolution.beta.defined());
      // Batch statistics cancel the convolution's bias: pass.cpp adds its gradient.
      result_.bias[k] = row_if(convolution.bias.defined() && !of_batch);
      const Tensor gamma = floats(convolution.gamma), beta = floats(convolution.beta);
      parameters_.insert(parameters_.end(), {gamma, beta});
      sums.push_back({in<T>(pass_.z[k]), in<float>(gamma), in<float>(beta), state_.norm_rows.of[k], float(pass_.gate_of(term)),
                      of_batch, coefficients_.of[k], out<float>(result_.gamma[k]), out<float>(result_.beta[k]),
                      out<float>(result_.bias[k]), gate_gradient(term)});
    }
    return sums;
  }

  // Leaves the weight's gradient, and returns that of what the convolution takes, before the mask of a ReLU.
  Tensor convolution_backward(const Term& term, bool wants_input) {
    const bool wants_weight = wanted_.weight[term.convolution];
    if (!wants_input && !wants_weight) return {};
    switch (runner(term)) {
      case Runner::kPointwise:
        return by_pointwise(term, wants_input, wants_weight);
      case Runner::kConv3x3:
        return by_conv3x3(term, wants_input, wants_weight);
      default:
        return by_library(term, wants_input, wants_weight);
    }
  }

  Tensor by_pointwise(const Term& term, bool wants_input, bool wants_weight) {
    const int64_t k = term.convolution;
    const Convolution& convolution = of(term);
    const Tensor& x = either(term.source);
    const ImageShape &source = pass_.shapes[term.source], &target = pass_.shapes[term.target];
    const PointwiseShape shape = pointwise_shape(x.size(0), target, convolution);
    const Tensor weight = convolution.weight.contiguous();
    const Tensor dp = wants_input ? new_images(like_, {target.height, target.width, source.channels}) : Tensor();
    if (wants_weight) result_.weight[k] = at::empty(weight.sizes(), weight.options());
    float* const partial = wants_weight ? scratch_.floats(pointwise_gradient_workspace(shape)) : nullptr;
    pointwise_backward(PointwiseBackward<T>{shape, in<T>(gradient_[term.target]), in<T>(pass_.z[k]), coefficients_.of[k],
                                            in<T>(x), in<T>(weight), pointwise_prologue(source, term.piece.prologue), out<T>(dp),
                                            out<T>(result_.weight[k]), partial, out<unsigned>(counter_)},
                       device_.stream());
    return dp;
  }

  Tensor by_conv3x3(const Term& term, bool wants_input, bool wants_weight) {
    const int64_t k = term.convolution;
    const Tensor& x = either(term.source);
    const Conv3x3Shape shape = conv3x3_shape(x.size(0), pass_.shapes[term.target], of(term));
    const T *const dy = in<T>(gradient_[term.target]), *const z = in<T>(pass_.z[k]);
    const Tensor weight = in_layout(of(term).weight);
    const Tensor dp = wants_input ? new_images(like_, pass_.shapes[term.source]) : Tensor();
    if (wants_input) {
      conv3x3_input(Conv3x3Input<T>{shape, dy, z, coefficients_.of[k], in<T>(weight), out<T>(dp)}, device_.stream());
    }
    if (wants_weight) {
      result_.weight[k] = at::empty(weight.sizes(), weight.options(), kLayout);
      float* const partial = scratch_.floats(conv3x3_weight_workspace<T>(shape));
      conv3x3_weight(Conv3x3Weight<T>{shape, dy, z, coefficients_.of[k], in<T>(x), term.piece.prologue == Prologue::kRelu,
                                      out<T>(result_.weight[k]), partial},
                     device_.stream());
    }
    return dp;
  }

  Tensor by_library(const Term& term, bool wants_input, bool wants_weight) {
    const int64_t k = term.convolution;
    const Convolution& convolution = of(term);
    const Tensor& node = term.piece.prologue == Prologue::kRelu ? state_.relus[term.source] : pass_.nodes[term.source];
    const Tensor x = apply_prologue(node, term.piece.prologue), dy = gradient_[term.target];
    Tensor gradient = new_images(like_, pass_.shapes[term.target]);
    norm_gradient(in<T>(dy), in<T>(pass_.z[k]), coefficients_.of[k], out<T>(gradient), images_of(gradient), device_.stream());
    const bool depthwise = convolution.depthwise.defined();
    const auto backward = [&](const Tensor& input, const Tensor& weight, const Geometry& g, int64_t groups, bool wants_x) {
      const auto [dx, dweight, dbias] =
          at::convolution_backward(gradient, input, weight, std::nullopt, g.stride, g.padding, g.dilation, false, {0, 0}, groups,
                                   {wants_x, wants_weight, false});
      gradient = dx;
      return dweight;
    };
    const Geometry spatial(depthwise ? convolution.depthwise : convolution.weight, term.piece);
    if (depthwise) {
      const Tensor middle = at::convolution(x, convolution.depthwise, {}, spatial.stride, spatial.padding, spatial.dilation,
                                            false, {0, 0}, x.size(1));
      result_.weight[k] = backward(middle, convolution.weight, pointwise_geometry(convolution.weight), 1, true);
      result_.depthwise[k] = backward(x, convolution.depthwise, spatial, x.size(1), wants_input);
    } else {
      result_.weight[k] = backward(x, convolution.weight, spatial, 1, wants_input);
    }
    return wants_input ? in_layout(prologue_backward(gradient, node, term.piece.prologue)) : Tensor();
  }

  Pass& pass_;
  const CudaState& state_;
  const Wanted& wanted_;
  const Needs needs_;
  const std::vector<std::vector<int64_t>> read_last_;
  const OnDevice device_;
  const int64_t last_;
  const Tensor like_;
  const Tensor counter_;
  std::vector<Tensor> gradient_, totals_;  // of each node; totals: the sum of the gradient
  const Rows coefficients_;
  Scratch scratch_;
  std::vector<Tensor> parameters_;  // what launches point to
  Tensor none_;
  Gradients result_;
};

}  // namespace

Gradients run_backward(Pass& pass, const CudaState& state, const Tensor& dy, const Wanted& wanted) {
  return for_device_type(dy.scalar_type(), [&](auto* zero) {
    return CudaBackward<std::remove_pointer_t<decltype(zero)>>(pass, state, dy, wanted).run();
  });
}

}  // namespace advnas::cuda
