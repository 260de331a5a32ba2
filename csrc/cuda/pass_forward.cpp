#include "../kernels/layout.h"
#include "cuda_pass.h"

namespace advnas::cuda {
namespace {

template <class T>
class CudaForward {
 public:
  CudaForward(Pass& pass, CudaState& state)
      : pass_(pass), state_(state), device_(pass.nodes[0]), counter_(counter(pass.nodes[0], device_)) {}

  void run() {
    state_.relus.resize(pass_.plan.num_nodes);
    state_.norm_rows = make_rows(pass_, like_, kNormRows, false);
    choose_runners();
    for (int64_t node = 0; node < pass_.plan.num_nodes; ++node) {
      if (!pass_.plan.live[node]) continue;
      const Reads reads = reads_of(node);
      node == 0 ? take_input(reads) : gather(node, reads);
      for (const Term& term : pass_.plan.out_of[node]) {
        if (term.convolution >= 0) convolve(term);
      }
      forget_read(pass_, node);
    }
  }

 private:
  // In which form a node is read later.
  struct Reads {
    bool value = false, relu = false;
  };

  const Convolution& of(const Term& term) { return pass_.convolutions[term.convolution]; }

  void choose_runners() {
    const bool has_conv3x3 = conv3x3_is_on<T>();
    state_.runners.assign(pass_.convolutions.size(), Runner::kLibrary);
    for (const auto& terms : pass_.plan.into) {
      for (const Term& term : terms) {
        if (term.convolution < 0) continue;
        const ImageShape& y = pass_.shapes[term.target];
        state_.runners[term.convolution] = runner_of<T>(of(term), term.piece, like_.size(0), y, has_conv3x3);
      }
    }
  }

  Runner runner(const Term& term) { return state_.runners[term.convolution]; }

  bool takes_relu(const Term& term) {
    return term.convolution >= 0 && term.piece.prologue == Prologue::kRelu && runner(term) == Runner::kLibrary;
  }

  Reads reads_of(int64_t node) {
    Reads reads;
    reads.value = node == pass_.plan.num_nodes - 1;
    const auto& out_of = pass_.plan.out_of[node];
    for (const Term& term : out_of) reads.relu |= takes_relu(term);
    for (const Term& term : out_of) {
      // ReLU of a ReLU is itself: our own convolutions take either.
      const bool either = reads.relu && term.convolution >= 0 && term.piece.prologue == Prologue::kRelu;
      reads.value |= !either;
    }
    return reads;
  }

  const Tensor& either(int64_t node) { return pass_.nodes[node].defined() ? pass_.nodes[node] : state_.relus[node]; }

  void take_input(const Reads& reads) {
    Tensor& x = pass_.nodes[0];
    Tensor& relu = state_.relus[0];
    const ImageShape& shape = pass_.shapes[0];
    if (reads.relu) relu = new_images(x, shape);
    if (!x.is_contiguous(kLayout) && x.is_contiguous()) {
      const Tensor from = x;
      x = reads.value ? new_images(from, shape) : Tensor();
      to_channels_last(in<T>(from), out<T>(x), out<T>(relu), images_of(from), device_.stream());
      return;
    }
    x = in_layout(x);
    if (reads.relu) node_forward(NodeForward<T>{images_of(x), in<T>(x), nullptr, out<T>(relu), 0, {}}, device_.stream());
  }

  void gather(int64_t node, const Reads& reads) {
    const ImageShape& shape = pass_.shapes[node];
    std::vector<NodeSource<T>> sources;
    for (const Term& term : pass_.plan.into[node]) {
      if (term.is_baseline()) continue;
      const auto gate = float(pass_.gate_of(term));
      if (term.convolution < 0) {
        sources.push_back({in<T>(pass_.nodes[term.source]), term.piece.arrival, gate, nullptr, nullptr});
      } else {
        const float* const rows = state_.norm_rows.of[term.convolution];
        const float* const map = rows != nullptr ? rows + kScale * shape.channels : nullptr;
        sources.push_back({in<T>(pass_.z[term.convolution]), Arrival::kIdentity, gate, map, nullptr});
      }
    }
    const Tensor value = reads.value || sources.size() > kMaxSources ? new_images(like_, shape) : Tensor();
    const Tensor relu = reads.relu ? new_images(like_, shape) : Tensor();
    const Images images{int(like_.size(0)), int(shape.height), int(shape.width), int(shape.channels)};
    size_t first = 0;
    do {
      NodeForward<T> launch{images, first == 0 ? nullptr : in<T>(value), out<T>(value), nullptr, 0, {}};
      for (; launch.num < kMaxSources && first < sources.size(); ++first) launch.source[launch.num++] = sources[first];
      if (first == sources.size()) launch.relu = out<T>(relu);
      node_forward(launch, device_.stream());
    } while (first < sources.size());
    pass_.nodes[node] = value;
    state_.relus[node] = relu;
  }

  void convolve(const Term& term) {
    const Convolution& convolution = of(term);
    const Tensor& x = takes_relu(term) ? state_.relus[term.source] : either(term.source);
    const bool of_batch = convolution.statistics == Statistics::kBatch;
    const Parameters parameters(convolution, term, float(pass_.gate_of(term)));
    const NormForward norm = parameters.norm(state_.norm_rows.of[term.convolution]);
    Tensor& z = pass_.z[term.convolution];
    if (runner(term) == Runner::kPointwise) {
      z = by_pointwise(x, term, norm);
    } else if (runner(term) == Runner::kConv3x3) {
      z = by_conv3x3(x, term, norm);
    } else {
      z = by_library(x, term);
      if (of_batch) {
        float* const partial = scratch_.floats(norm_statistics_workspace(images_of(z)));
        norm_statistics(in<T>(z), images_of(z), norm, partial, out<unsigned>(counter_), device_.stream());
      }
    }
    if (!of_batch && !is_plain(convolution)) norm_fixed(int(z.size(1)), norm, device_.stream());
    if (of_batch && z.numel() > 0) parameters.copy_back();
  }

  Tensor by_pointwise(const Tensor& x, const Term& term, const NormForward& norm) {
    const Convolution& convolution = of(term);
    const bool of_batch = convolution.statistics == Statistics::kBatch;
    const Tensor z = new_images(like_, pass_.shapes[term.target]), weight = convolution.weight.contiguous();
    const PointwiseShape shape = pointwise_shape(x.size(0), pass_.shapes[term.target], convolution);
    const PointwisePrologue prologue = pointwise_prologue(pass_.shapes[term.source], term.piece.prologue);
    float* const partial = of_batch ? scratch_.floats(pointwise_statistics_workspace(shape)) : nullptr;
    pointwise_forward(PointwiseForward<T>{shape, in<T>(x), in<T>(weight), prologue, out<T>(z), of_batch, norm, partial,
                                          of_batch ? out<unsigned>(counter_) : nullptr},
                      device_.stream());
    return z;
  }

  Tensor by_conv3x3(const Tensor& x, const Term& term, const NormForward& norm) {
    const Convolution& convolution = of(term);
    const bool of_batch = convolution.statistics == Statistics::kBatch, relu = term.piece.prologue == Prologue::kRelu;
    const Tensor z = new_images(like_, pass_.shapes[term.target]), weight = in_layout(convolution.weight);
    const Conv3x3Shape shape = conv3x3_shape(x.size(0), pass_.shapes[term.target], convolution);
    float* const partial = of_batch ? scratch_.floats(conv3x3_statistics_workspace(shape)) : nullptr;
    conv3x3_forward(Conv3x3Forward<T>{shape, in<T>(x), in<T>(weight), relu, out<T>(z), of_batch, norm, partial,
                                      of_batch ? out<unsigned>(counter_) : nullptr},
                    device_.stream());
    return z;
  }

  Tensor by_library(const Tensor& x, const Term& term) {
    const Convolution& convolution = of(term);
    Tensor z = apply_prologue(x, term.piece.prologue);
    const Tensor& spatial = convolution.depthwise.defined() ? convolution.depthwise : convolution.weight;
    const Geometry g(spatial, term.piece);
    const int64_t groups = convolution.depthwise.defined() ? z.size(1) : 1;
    z = at::convolution(z, spatial, {}, g.stride, g.padding, g.dilation, false, {0, 0}, groups);
    if (convolution.depthwise.defined()) {
      const Geometry p = pointwise_geometry(convolution.weight);
      z = at::convolution(z, convolution.weight, {}, p.stride, p.padding, p.dilation, false, {0, 0}, 1);
    }
    return in_layout(z);
  }

  // Batch norm's parameters as the kernels take them. Running statistics in another type than float32 are copied there and back.
  class Parameters {
   public:
    Parameters(const Convolution& convolution, const Term& term, float gate)
        : convolution_(convolution),
          gamma_(floats(convolution.gamma)),
          beta_(floats(convolution.beta)),
          bias_(floats(convolution.bias)),
          gate_(gate),
          eps_(float(term.piece.eps)),
          momentum_(float(term.piece.momentum)) {
      if (convolution.statistics == Statistics::kNone) return;
      mean_ = floats(convolution.running_mean);
      var_ = floats(convolution.running_var);
    }

    NormForward norm(float* rows) const {
      auto* const tracked = convolution_.batches_tracked.defined() && convolution_.statistics == Statistics::kBatch
                                ? convolution_.batches_tracked.mutable_data_ptr<int64_t>()
                                : nullptr;
      return {in<float>(gamma_),
              in<float>(beta_),
              in<float>(bias_),
              out<float>(mean_),
              out<float>(var_),
              tracked,
              gate_,
              eps_,
              momentum_,
              rows};
    }

    void copy_back() const {
      if (!mean_.defined() || mean_.is_same(convolution_.running_mean)) return;
      convolution_.running_mean.copy_(mean_);
      convolution_.running_var.copy_(var_);
    }

   private:
    const Convolution& convolution_;
    Tensor gamma_, beta_, bias_, mean_, var_;
    float gate_, eps_, momentum_;
  };

  Pass& pass_;
  CudaState& state_;
  const OnDevice device_;
  const Tensor counter_;
  const Tensor like_ = pass_.nodes[0];
  Scratch scratch_{like_};
};

}  // namespace

void run_forward(Pass& pass, CudaState& state) {
  for_device_type(pass.nodes[0].scalar_type(),
                  [&](auto* zero) { CudaForward<std::remove_pointer_t<decltype(zero)>>(pass, state).run(); });
}

}  // namespace advnas::cuda
