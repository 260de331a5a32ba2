#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/lerp.h>

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
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = moments.mean[i * channels + c] - mean[c];
      mean[c] += distance / double(i + 1);
      variance[c] += moments.m2[i * channels + c] + distance * distance * double(pixels) * double(i) / double(i + 1);
    }
  }
  for (double& v : variance) v /= double(std::max<int64_t>(1, batch * pixels));
  return {mean, variance};
}

void update(const Tensor& running, const Row& current, double momentum) {
  const Tensor values = at::empty({int64_t(current.size())}, at::kDouble);
  std::copy(current.begin(), current.end(), values.mutable_data_ptr<double>());
  running.lerp_(values.to(running.scalar_type()), momentum);
}

void take_batch_statistics(Convolution& convolution, const Tensor& z, const Moments& moments, const Pass& pass) {
  const int64_t batch = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3), count = batch * pixels;
  auto [mean, variance] = join(moments, batch, channels, pixels);
  convolution.mean = mean;
  convolution.rstd = variance;
  for (double& v : convolution.rstd) v = 1 / std::sqrt(v + pass.eps);
  if (!convolution.running_mean.defined() || count == 0) return;
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] += convolution.bias[c];
    variance[c] *= double(count) / double(count - 1);
  }
  update(convolution.running_mean, mean, pass.momentum);
  update(convolution.running_var, variance, pass.momentum);
  convolution.batches_tracked.add_(1);
}

void take_running_statistics(Convolution& convolution, double eps) {
  const Tensor mean = convolution.running_mean.to(at::kDouble).contiguous();
  const Tensor variance = convolution.running_var.to(at::kDouble).contiguous();
  convolution.mean.assign(mean.const_data_ptr<double>(), mean.const_data_ptr<double>() + mean.numel());
  convolution.rstd.assign(variance.const_data_ptr<double>(), variance.const_data_ptr<double>() + variance.numel());
  for (size_t c = 0; c < convolution.mean.size(); ++c) {
    convolution.mean[c] -= convolution.bias[c];
    convolution.rstd[c] = 1 / std::sqrt(convolution.rstd[c] + eps);
  }
}

// What arrives at `node`, and the part of it that is the same at every pixel.
template <class T>
Gathered<T> gather(const Pass& pass, int64_t node, Row& bias) {
  Gathered<T> sources;
  for (const Term& term : pass.plan.into(node)) {
    const double gate = pass.gates[term.gate];
    if (term.piece == Piece::kIdentity) {
      sources.add_scaled(pass.nodes[term.source], Row(bias.size(), gate));
    } else if (term.piece == Piece::kAvgPool) {
      sources.add_pooled(pass.nodes[term.source], gate);
    } else {
      const Convolution& convolution = pass.convolutions[term.convolution];
      Row scale(bias.size());
      for (size_t c = 0; c < bias.size(); ++c) {
        const ScaleShift map =
            batch_norm_forward(gate, convolution.gamma[c], convolution.beta[c], convolution.mean[c], convolution.rstd[c]);
        scale[c] = map.scale;
        bias[c] += map.shift;
      }
      sources.add_scaled(pass.z[term.convolution], scale);
    }
  }
  return sources;
}

template <class T>
void run_node(Pass& pass, int64_t node) {
  const auto& kernels = cpu::kernels<T>();
  const Tensor& x = pass.nodes[0];
  const int64_t batch = x.size(0), channels = x.size(1);
  const ImageShape shape = shape_of(x);
  Row bias(channels);
  const Gathered<T> sources = gather<T>(pass, node, bias);
  const auto typed_bias = cast<T>(bias);
  if (node > 0) pass.nodes[node] = empty_buffer(x.sizes(), x.scalar_type());

  struct Leaving {
    Convolver<T> convolver;
    Tensor z;
    Moments* moments;
  };
  std::vector<Leaving> leaving;
  std::vector<Moments> moments(pass.convolutions.size());
  int64_t frame_size = 0, workspace_size = 0;
  for (const Term& term : pass.plan.out_of(node)) {
    if (term.convolution < 0) continue;
    Convolver<T> convolver(shape, pass.convolutions[term.convolution].weight);
    convolver.prepare_forward();
    frame_size = std::max(frame_size, convolver.frame());
    workspace_size = std::max(workspace_size, convolver.workspace());
    Tensor& z = pass.z[term.convolution] = empty_buffer(x.sizes(), x.scalar_type());
    Moments& sums = moments[term.convolution] = {Row(batch * channels), Row(batch * channels)};
    leaving.push_back({convolver, z, &sums});
  }

  for_ranges(batch, [&](int64_t, int64_t begin, int64_t end) {
    std::vector<T> row(sources.workspace(shape)), frame(frame_size), workspace(workspace_size);
    for (int64_t i = begin; i < end; ++i) {
      if (node > 0) {
        sources.with_image(i, [&](const Sources<T>& images) {
          kernels.node_forward(images, typed_bias.data(), mutable_image<T>(pass.nodes[node], i), shape, row.data());
        });
      }
      for (const Leaving& out : leaving) {
        T* const z = mutable_image<T>(out.z, i);
        kernels.pad_relu(image<T>(pass.nodes[node], i), frame.data(), shape.height, shape.width, channels,
                         out.convolver.shape().size);
        out.convolver.run(frame.data(), z, workspace.data());
        if (pass.use_running_stats) continue;
        kernels.channel_moments(z, shape.height * shape.width, channels, out.moments->mean.data() + i * channels,
                                out.moments->m2.data() + i * channels);
      }
    }
  });

  for (const Term& term : pass.plan.out_of(node)) {
    if (term.convolution < 0) continue;
    Convolution& convolution = pass.convolutions[term.convolution];
    if (pass.use_running_stats) {
      take_running_statistics(convolution, pass.eps);
    } else {
      take_batch_statistics(convolution, pass.z[term.convolution], moments[term.convolution], pass);
    }
  }
}

}  // namespace

void run_forward(Pass& pass) {
  pass.nodes.resize(pass.plan.num_nodes);
  pass.z.resize(pass.convolutions.size());
  AT_DISPATCH_FLOATING_TYPES(pass.nodes[0].scalar_type(), "cell_forward", [&] {
    for (int64_t node = 0; node < pass.plan.num_nodes; ++node) {
      if (pass.plan.live[node]) run_node<scalar_t>(pass, node);
    }
  });
}

}  // namespace advnas
