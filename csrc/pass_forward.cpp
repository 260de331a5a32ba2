#include <ATen/Dispatch.h>
#include <ATen/ops/lerp.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "buffers.h"
#include "convolver.h"
#include "images.h"

namespace advnas {
namespace {

using at::Tensor;

// Sums of one convolution's output, an image at a time.
struct Moments {
  Row mean, m2;  // [batch, channels]
};

// Images are joined by the rule of Chan, Golub and LeVeque (1983): exact where the mean is large beside the spread.
// Returns {mean, variance}, the biased one.
std::pair<Row, Row> join(const Moments& moments, int64_t batch, int64_t channels, int64_t pixels) {
  Row mean(channels), variance(channels);
  for (int64_t i = 0; i < batch; ++i) {
    const double share = 1 / double(i + 1), weight = double(pixels) * double(i) * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = moments.mean[i * channels + c] - mean[c];
      mean[c] += distance * share;
      variance[c] += moments.m2[i * channels + c] + distance * distance * weight;
    }
  }
  for (double& v : variance) v /= double(std::max<int64_t>(1, batch * pixels));
  return {mean, variance};
}

void update(const Tensor& running, const Row& current, double momentum) {
  running.lerp_(tensor_of(current).to(running.scalar_type()), momentum);
}

void take_parameters(Convolution& convolution) {
  const auto row_or = [&](const Tensor& tensor, double value) {
    return tensor.defined() ? row_of(tensor) : Row(convolution.weight.size(0), value);
  };
  convolution.rows = {row_or(convolution.bias, 0), row_or(convolution.gamma, 1), row_or(convolution.beta, 0), {}, {}};
}

void take_batch_statistics(Convolution& convolution, const Piece& piece, const Tensor& z, const Moments& moments) {
  const int64_t batch = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3), count = batch * pixels;
  auto [mean, variance] = join(moments, batch, channels, pixels);
  convolution.rows.mean = mean;
  convolution.rows.rstd = variance;
  for (double& v : convolution.rows.rstd) v = 1 / std::sqrt(v + piece.eps);
  if (!convolution.running_mean.defined() || count == 0) return;
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] += convolution.rows.bias[c];
    variance[c] *= double(count) / double(count - 1);
  }
  update(convolution.running_mean, mean, piece.momentum);
  update(convolution.running_var, variance, piece.momentum);
  convolution.batches_tracked.add_(1);
}

// Statistics that do not come from z; without batch norm its mean is 0 and its deviation 1.
void take_fixed_statistics(Convolution& convolution, double eps) {
  const size_t channels = convolution.rows.bias.size();
  convolution.rows.mean.assign(channels, 0);
  convolution.rows.rstd.assign(channels, 1);
  if (convolution.statistics == Statistics::kRunning) {
    const Tensor mean = convolution.running_mean.to(at::kDouble).contiguous();
    const Tensor variance = convolution.running_var.to(at::kDouble).contiguous();
    for (size_t c = 0; c < channels; ++c) {
      convolution.rows.mean[c] = mean.const_data_ptr<double>()[c];
      convolution.rows.rstd[c] = 1 / std::sqrt(variance.const_data_ptr<double>()[c] + eps);
    }
  }
  for (size_t c = 0; c < channels; ++c) convolution.rows.mean[c] -= convolution.rows.bias[c];
}

// A convolution that leaves a node.
template <class T>
struct Leaving {
  std::unique_ptr<Convolver<T>> convolver;
  Term term;
  Moments moments;
};

template <class T>
class Forward {
 public:
  explicit Forward(Pass& pass) : pass_(pass) {}

  // The weights of a node's convolutions are packed while the node before it runs.
  void run() {
    std::vector<int64_t> live;
    for (int64_t node = 0; node < pass_.plan.num_nodes; ++node) {
      if (pass_.plan.live[node]) live.push_back(node);
    }
    std::vector<Leaving<T>> leaving = convolutions_that_leave(live[0]);
    run_now(chores_);
    find_made_again();
    for (size_t i = 0; i < live.size(); ++i) {
      std::vector<Leaving<T>> next;
      if (i + 1 < live.size()) next = convolutions_that_leave(live[i + 1]);
      run_node(live[i], leaving);
      forget_read(pass_, live[i]);
      leaving = std::move(next);
    }
  }

 private:
  void find_made_again() {
    const auto is_convolution = [](const Term& term) { return term.convolution >= 0; };
    pass_.made_again.assign(pass_.plan.num_nodes, false);
    for (int64_t node = 1; node + 1 < pass_.plan.num_nodes; ++node) {
      const auto& into = pass_.plan.into[node];
      pass_.made_again[node] = !into.empty() && std::all_of(into.begin(), into.end(), is_convolution);
    }
  }

  std::vector<Leaving<T>> convolutions_that_leave(int64_t node) {
    std::vector<Leaving<T>> leaving;
    for (const Term& term : pass_.plan.out_of[node]) {
      if (term.convolution < 0) continue;
      const Convolution& convolution = pass_.convolutions[term.convolution];
      auto convolver = make_convolver<T>(pass_.shapes[node], term.piece, convolution);
      convolver->prepare_forward(chores_);
      const bool summed = convolution.statistics == Statistics::kBatch;
      const size_t sums = summed ? size_t(pass_.batch * pass_.shapes[term.target].channels) : 0;
      leaving.push_back({std::move(convolver), term, {Row(sums), Row(sums)}});
    }
    return leaving;
  }

  void run_node(int64_t node, std::vector<Leaving<T>>& leaving) {
    const auto& kernels = cpu::kernels<T>();
    const ImageShape& shape = pass_.shapes[node];
    Row bias(shape.channels);
    const Gathered<T> sources = gather_value<T>(pass_, node, bias);
    const auto typed_bias = cast<T>(bias);
    // Where nothing reads the node later, its value stays in the workspace.
    const bool passes = pass_.is_made_again(node) && leaving.size() == pass_.plan.out_of[node].size();
    if (node > 0 && !passes) pass_.nodes[node] = empty_images(pass_.batch, shape, pass_.type);
    int64_t group = 1, workspace = sources.workspace(shape);
    for (const Leaving<T>& out : leaving) {
      group = std::max(group, out.convolver->group());
      pass_.z[out.term.convolution] = empty_images(pass_.batch, pass_.shapes[out.term.target], pass_.type);
    }
    for (const Leaving<T>& out : leaving) workspace = std::max(workspace, out.convolver->workspace(group));
    const int64_t value = passes ? group * elements(shape) : 0;

    const auto run = [&](int64_t, int64_t first, int64_t images, T* values) {
      T* const space = values + value;
      T* const made = passes ? values : node > 0 ? mutable_image<T>(pass_.nodes[node], first) : nullptr;
      for (int64_t i = 0; node > 0 && i < images; ++i) {
        sources.with_image(first + i, [&](const Sources<T>& of_image) {
          kernels.node_forward(of_image, typed_bias.data(), made + i * elements(shape), shape, space);
        });
      }
      const T* const x = node > 0 ? made : image<T>(pass_.nodes[0], first);
      for (Leaving<T>& out : leaving) {
        const Tensor& z = pass_.z[out.term.convolution];
        out.convolver->forward(x, mutable_image<T>(z, first), images, space);
        const int64_t channels = z.size(1);
        for (int64_t i = first; !out.moments.mean.empty() && i < first + images; ++i) {
          kernels.channel_moments(image<T>(z, i), z.size(2) * z.size(3), channels, out.moments.mean.data() + i * channels,
                                  out.moments.m2.data() + i * channels);
        }
      }
    };
    for_groups<T>(cut(pass_.batch, group), group, value + workspace, chores_, run);

    for (const Leaving<T>& out : leaving) {
      Convolution& convolution = pass_.convolutions[out.term.convolution];
      if (convolution.statistics == Statistics::kBatch) {
        take_batch_statistics(convolution, out.term.piece, pass_.z[out.term.convolution], out.moments);
      } else {
        take_fixed_statistics(convolution, out.term.piece.eps);
      }
    }
  }

  Pass& pass_;
  Chores chores_;
};

}  // namespace

void run_forward_cpu(Pass& pass) {
  pass.nodes[0] = pass.nodes[0].contiguous(at::MemoryFormat::ChannelsLast);
  for (Convolution& convolution : pass.convolutions) take_parameters(convolution);
  AT_DISPATCH_FLOATING_TYPES(pass.type, "cell_forward", [&] { Forward<scalar_t>(pass).run(); });
}

}  // namespace advnas
