#include <ATen/Dispatch.h>
#include <ATen/ops/lerp.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "buffers.h"
#include "convolver.h"
#include "images.h"
#include "kernels/batch_norm_math.h"

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

// What arrives at `node`, and the part of it that is the same at every pixel.
template <class T>
Gathered<T> gather(const Pass& pass, int64_t node, Row& bias) {
  Gathered<T> sources;
  for (const Term& term : pass.plan.into[node]) {
    const double gate = pass.gate_of(term);
    Row scale(bias.size(), gate);
    if (term.convolution < 0) {
      sources.add(pass.nodes[term.source], scale, term.piece.kind == Kind::kAvgPool);
      continue;
    }
    const Convolution& convolution = pass.convolutions[term.convolution];
    for (size_t c = 0; c < bias.size(); ++c) {
      const ScaleShift map = batch_norm_forward(gate, convolution.rows.gamma[c], convolution.rows.beta[c],
                                                convolution.rows.mean[c], convolution.rows.rstd[c]);
      scale[c] = map.scale;
      bias[c] += map.shift;
    }
    sources.add(pass.z[term.convolution], scale, false);
  }
  return sources;
}

template <class T>
void run_node(Pass& pass, int64_t node) {
  const auto& kernels = cpu::kernels<T>();
  const int64_t batch = pass.batch;
  const ImageShape& shape = pass.shapes[node];
  Row bias(shape.channels);
  const Gathered<T> sources = gather<T>(pass, node, bias);
  const auto typed_bias = cast<T>(bias);
  if (node > 0) pass.nodes[node] = empty_images(batch, shape, pass.type);

  struct Leaving {
    std::unique_ptr<Convolver<T>> convolver;
    Term term;
    Tensor z;
    Moments moments;
  };
  std::vector<Leaving> leaving;
  int64_t group = 1, workspace = sources.workspace(shape);
  for (const Term& term : pass.plan.out_of[node]) {
    if (term.convolution < 0) continue;
    auto convolver = make_convolver<T>(shape, term.piece, pass.convolutions[term.convolution]);
    convolver->prepare_forward();
    group = std::max(group, convolver->group());
    const ImageShape& out = pass.shapes[term.target];
    const bool summed = pass.convolutions[term.convolution].statistics == Statistics::kBatch;
    const size_t sums = summed ? size_t(batch * out.channels) : 0;
    Tensor& z = pass.z[term.convolution] = empty_images(batch, out, pass.type);
    leaving.push_back({std::move(convolver), term, z, {Row(sums), Row(sums)}});
  }
  for (const Leaving& out : leaving) workspace = std::max(workspace, out.convolver->workspace(group));

  for_groups<T>(
      cut(batch, group), group, workspace, [](int64_t) {},
      [&](int64_t, int64_t first, int64_t images, T* space) {
        for (int64_t i = first; node > 0 && i < first + images; ++i) {
          sources.with_image(i, [&](const Sources<T>& of_image) {
            kernels.node_forward(of_image, typed_bias.data(), mutable_image<T>(pass.nodes[node], i), shape, space);
          });
        }
        for (Leaving& out : leaving) {
          out.convolver->forward(image<T>(pass.nodes[node], first), mutable_image<T>(out.z, first), images, space);
          const int64_t channels = out.z.size(1);
          for (int64_t i = first; !out.moments.mean.empty() && i < first + images; ++i) {
            kernels.channel_moments(image<T>(out.z, i), out.z.size(2) * out.z.size(3), channels,
                                    out.moments.mean.data() + i * channels, out.moments.m2.data() + i * channels);
          }
        }
      });

  for (const Leaving& out : leaving) {
    Convolution& convolution = pass.convolutions[out.term.convolution];
    if (convolution.statistics == Statistics::kBatch) {
      take_batch_statistics(convolution, out.term.piece, out.z, out.moments);
    } else {
      take_fixed_statistics(convolution, out.term.piece.eps);
    }
  }
}

}  // namespace

void run_forward_cpu(Pass& pass) {
  pass.nodes[0] = pass.nodes[0].contiguous(at::MemoryFormat::ChannelsLast);
  for (Convolution& convolution : pass.convolutions) take_parameters(convolution);
  AT_DISPATCH_FLOATING_TYPES(pass.type, "cell_forward", [&] {
    for (int64_t node = 0; node < pass.plan.num_nodes; ++node) {
      if (!pass.plan.live[node]) continue;
      run_node<scalar_t>(pass, node);
      forget_read(pass, node);
    }
  });
}

}  // namespace advnas
