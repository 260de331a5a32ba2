#include <ATen/Dispatch.h>

#include "buffers.h"
#include "convolver.h"
#include "cpu_pass.h"

namespace advnas {
namespace {

using at::Tensor;

template <class T>
struct SiblingOutputs {
  Siblings<T> of;
  // Of each of them.
  std::vector<Moments> moments;
  std::vector<ImageViews<T>> z;
};

template <class T>
class CpuForward {
 public:
  CpuForward(Pass& pass, CpuState& state) : pass_(pass), state_(state) {}

  // The weights of a node's convolutions are packed while the node before it runs.
  void run() {
    std::vector<int64_t> live;
    for (int64_t node = 0; node < pass_.plan.num_nodes; ++node) {
      if (pass_.plan.live[node]) live.push_back(node);
    }
    std::vector<SiblingOutputs<T>> leaving = convolutions_that_leave(live[0]);
    run_now(tasks_);
    find_recomputed();
    for (size_t i = 0; i < live.size(); ++i) {
      std::vector<SiblingOutputs<T>> next;
      if (i + 1 < live.size()) next = convolutions_that_leave(live[i + 1]);
      run_node(live[i], leaving);
      forget_read(pass_, live[i]);
      leaving = std::move(next);
    }
  }

 private:
  void find_recomputed() {
    state_.recomputed.assign(pass_.plan.num_nodes, false);
    for (int64_t node = 1; node + 1 < pass_.plan.num_nodes; ++node) {
      const auto& into = pass_.plan.into[node];
      state_.recomputed[node] = !into.empty() && are_convolutions(into);
    }
  }

  static bool are_convolutions(const std::vector<Term>& terms) {
    return std::all_of(terms.begin(), terms.end(), [](const Term& term) { return term.convolution >= 0 || term.is_baseline(); });
  }

  std::vector<SiblingOutputs<T>> convolutions_that_leave(int64_t node) {
    std::vector<SiblingOutputs<T>> leaving;
    for (Siblings<T>& siblings : siblings_that_leave<T>(pass_, node, [](const Term&) { return 0; })) {
      siblings.convolver->prepare_forward(tasks_);
      auto& out = leaving.emplace_back(SiblingOutputs<T>{std::move(siblings), {}, {}});
      for (const Term& term : out.of.terms) {
        const bool summed = pass_.convolutions[term.convolution].statistics == Statistics::kBatch;
        const size_t sums = summed ? size_t(pass_.batch * pass_.shapes[term.target].channels) : 0;
        out.moments.push_back({Row(sums), Row(sums)});
      }
    }
    return leaving;
  }

  void run_node(int64_t node, std::vector<SiblingOutputs<T>>& leaving) {
    const auto& kernels = cpu::kernels<T>();
    const ImageShape& shape = pass_.shapes[node];
    Row bias(shape.channels);
    const Gathered<T> sources = gather_value<T>(pass_, state_, node, bias);
    const auto typed_bias = cast<T>(bias);
    // Where nothing reads the node later, its value stays in the workspace.
    const bool passes = state_.recomputed[node] && are_convolutions(pass_.plan.out_of[node]);
    if (node > 0 && !passes) pass_.nodes[node] = empty_images(pass_.batch, shape, pass_.type);
    const ImageViews<T> kept(node > 0 && !passes ? pass_.nodes[node] : Tensor());
    const ImageViews<const T> input(pass_.nodes[0]);
    int64_t group = 1, workspace = sources.workspace(shape);
    for (SiblingOutputs<T>& out : leaving) {
      group = std::max(group, out.of.convolver->group());
      for (const Term& term : out.of.terms) {
        pass_.z[term.convolution] = empty_images(pass_.batch, pass_.shapes[term.target], pass_.type);
        out.z.emplace_back(pass_.z[term.convolution]);
      }
    }
    for (const SiblingOutputs<T>& out : leaving) workspace = std::max(workspace, out.of.convolver->workspace(group));
    const int64_t value = passes ? group * elements(shape) : 0;

    const auto run = [&](int64_t, int64_t first, int64_t images, T* values) {
      T* const space = values + value;
      T* const made = passes ? values : kept[first];
      for (int64_t i = 0; node > 0 && i < images; ++i) {
        sources.with_image(first + i, [&](const Sources<T>& of_image) {
          kernels.node_forward(of_image, typed_bias.data(), made + i * elements(shape), shape, space);
        });
      }
      const T* const x = node > 0 ? made : input[first];
      for (SiblingOutputs<T>& out : leaving) {
        T* z[kMostSiblings];
        for (size_t k = 0; k < out.z.size(); ++k) z[k] = out.z[k][first];
        out.of.convolver->forward(x, z, images, space);
        for (size_t k = 0; k < out.z.size(); ++k)
          sum(out.z[k], pass_.shapes[out.of.terms[k].target], first, images, out.moments[k]);
      }
    };
    for_groups<T>(cut(pass_.batch, group), group, value + workspace, tasks_, run);

    for (const SiblingOutputs<T>& out : leaving) {
      for (size_t k = 0; k < out.z.size(); ++k) take_statistics(out.of.terms[k], out.moments[k]);
    }
  }

  static void sum(const ImageViews<T>& z, const ImageShape& shape, int64_t first, int64_t images, Moments& moments) {
    const int64_t channels = shape.channels;
    for (int64_t i = first; !moments.mean.empty() && i < first + images; ++i) {
      cpu::kernels<T>().channel_moments(z[i], shape.height * shape.width, channels, moments.mean.data() + i * channels,
                                        moments.m2.data() + i * channels);
    }
  }

  void take_statistics(const Term& term, const Moments& moments) {
    const Convolution& convolution = pass_.convolutions[term.convolution];
    NormState& norm = state_.norms[term.convolution];
    if (convolution.statistics != Statistics::kBatch) return take_fixed_statistics(convolution, norm, term.piece.eps);
    const auto [height, width, channels] = pass_.shapes[term.target];
    take_batch_statistics(convolution, norm, moments, pass_.batch, height * width, term.piece.eps, term.piece.momentum);
  }

  Pass& pass_;
  CpuState& state_;
  BackgroundTasks tasks_;
};

}  // namespace

void run_cpu_forward(Pass& pass, CpuState& state) {
  pass.nodes[0] = pass.nodes[0].contiguous(at::MemoryFormat::ChannelsLast);
  for (const Convolution& convolution : pass.convolutions) {
    state.norms.push_back(parameters_of(convolution, convolution.weight.size(0)));
  }
  AT_DISPATCH_FLOATING_TYPES(pass.type, "cell_forward", [&] { CpuForward<scalar_t>(pass, state).run(); });
}

}  // namespace advnas
