// Which device runs a pass, and what both sides need.
#include "pass.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "device.h"

namespace advnas {
namespace {

using at::Tensor;

void check(const Convolution& convolution, const ImageShape& source, const ImageShape& target, const Tensor& x) {
  const Tensor &depthwise = convolution.depthwise, &weight = convolution.weight;
  const int64_t in = depthwise.defined() ? depthwise.size(0) : weight.size(1);
  TORCH_CHECK_VALUE(source.channels == in, "advnas_ext: a convolution takes ", in, " channels, got ", source.channels);
  TORCH_CHECK_VALUE(weight.device() == x.device(), "advnas_ext: the images are on ", x.device(), " and a convolution on ",
                    weight.device(), "; move one of them with .to()");
  check_rows(convolution, target.channels, x.device());
  TORCH_CHECK_VALUE(convolution.statistics != Statistics::kBatch || x.size(0) * target.height * target.width != 1,
                    "OnePathCell: batch statistics need more than one value per channel, got one image of ", source.height, "x",
                    source.width, "; use more or larger images, or running statistics and eval()");
  if (!depthwise.defined()) return;
  TORCH_CHECK_VALUE(weight.size(2) == 1, "advnas_ext: after a depthwise convolution comes one with size 1 and stride 1");
  TORCH_CHECK_VALUE(
      depthwise.size(1) == 1 && weight.size(1) == in,
      "advnas_ext: a depthwise convolution has a filter for each of its channels, and the one behind it takes as many, "
      "got weights ",
      depthwise.sizes(), " and ", weight.sizes());
}

// Of every node; refuses what does not fit.
void find_shapes(Pass& pass) {
  const auto shape_after = [&](const Term& term) {
    const ImageShape& source = pass.shapes[term.source];
    const int64_t channels = term.convolution < 0 ? source.channels : pass.convolutions[term.convolution].weight.size(0);
    return output_shape(source, term.piece, channels);
  };
  pass.shapes.assign(pass.plan.num_nodes, shape_of(pass.nodes[0]));
  TORCH_CHECK_VALUE(pass.shapes[0].height > 0 && pass.shapes[0].width > 0, "advnas_ext: images must have pixels, got ",
                    pass.shapes[0].height, "x", pass.shapes[0].width);
  for (int64_t node = 1; node < pass.plan.num_nodes; ++node) {
    const auto& terms = pass.plan.into[node];
    ImageShape& expected = pass.shapes[node];
    expected = shape_after(terms.empty() ? pass.plan.first[node] : terms[0]);
    for (const Term& term : terms) {
      const ImageShape shape = shape_after(term);
      if (term.convolution >= 0) {
        check(pass.convolutions[term.convolution], pass.shapes[term.source], shape, pass.nodes[0]);
      }
      TORCH_CHECK_VALUE(shape.height == expected.height && shape.width == expected.width && shape.channels == expected.channels,
                        "advnas_ext: operations into one node differ in the shapes of their outputs, ", shape.channels, "x",
                        shape.height, "x", shape.width, " and ", expected.channels, "x", expected.height, "x", expected.width);
    }
  }
}

std::shared_ptr<Backend> backend_of([[maybe_unused]] const Tensor& x) {
#ifdef ADVNAS_DEVICE
  if (on_device(x)) return cuda::make_backend();
#endif
  return make_cpu_backend();
}

// Batch statistics cancel the bias of the convolution before them: its gradient is 0, which no device computes.
void add_cancelled(const Pass& pass, const Wanted& wanted, Gradients& gradients) {
  std::vector<int64_t> cancelled;
  int64_t channels = 0;
  for (const auto& terms : pass.plan.into) {
    for (const Term& term : terms) {
      if (term.convolution < 0 || !wanted.norm[term.convolution]) continue;
      const Convolution& convolution = pass.convolutions[term.convolution];
      if (!convolution.bias.defined() || convolution.statistics != Statistics::kBatch) continue;
      cancelled.push_back(term.convolution);
      channels += convolution.bias.numel();
    }
  }
  if (cancelled.empty()) return;
  const Tensor zeros = at::zeros({channels}, pass.convolutions[cancelled[0]].bias.options());
  int64_t first = 0;
  for (const int64_t k : cancelled) {
    const int64_t size = pass.convolutions[k].bias.numel();
    gradients.bias[k] = zeros.narrow(0, first, size);
    first += size;
  }
}

// A convolution into a node that is only compared with: PyTorch has no gradient there, and not one of 0.
void leave_out_what_does_not_count(const Pass& pass, Gradients& gradients) {
  for (const auto& terms : pass.plan.into) {
    for (const Term& term : terms) {
      if (term.convolution < 0 || pass.plan.counts[term.target]) continue;
      for (auto* of : {&gradients.weight, &gradients.depthwise, &gradients.gamma, &gradients.beta, &gradients.bias}) {
        (*of)[term.convolution] = Tensor();
      }
    }
  }
}

}  // namespace

ImageShape output_shape(const ImageShape& x, const Piece& piece, int64_t out_channels) {
  const ImageShape inner = shape_after_prologue(x, piece.prologue);
  return ConvolutionShape{inner.height, inner.width, x.channels, out_channels, 1, piece.stride}.output();
}

Pass Pass::copy() const {
  Pass copy = *this;
  copy.backend = backend->clone();
  return copy;
}

void forget_read(Pass& pass, int64_t node) {
  const auto forget_value = [&](int64_t read) {
    const auto& out_of = pass.plan.out_of[read];
    if (read + 1 == pass.plan.num_nodes) return;
    for (const Term& term : out_of) {
      if (term.convolution < 0 && term.target > node) return;
    }
    const bool is_read_backward =
        std::any_of(out_of.begin(), out_of.end(), [](const Term& t) { return t.reads_source_backward(); });
    if (pass.save && (pass.save_for_gates || is_read_backward) && !pass.backend->recomputes(read)) return;
    pass.nodes[read] = Tensor();
    pass.backend->forget(read);
  };
  forget_value(node);
  for (const Term& term : pass.plan.into[node]) {
    if (term.convolution < 0) {
      forget_value(term.source);
    } else if (!pass.save) {
      pass.z[term.convolution] = Tensor();
    }
  }
}

void forget_read_backward(Pass& pass, int64_t node) {
  pass.nodes[node] = Tensor();
  pass.backend->forget(node);
  for (const Term& term : pass.plan.out_of[node]) {
    if (term.convolution >= 0) pass.z[term.convolution] = Tensor();
  }
}

Needs::Needs(const Pass& pass, const Wanted& wanted)
    : pass_(pass), wanted_(wanted), nodes_(pass.plan.num_nodes), offsets_(pass.plan.num_nodes) {
  nodes_[0] = wanted.x;
  for (const int64_t target : pass.offset_targets) {
    if (target >= 0) offsets_[target] = wanted.offsets;
  }
  for (int64_t node = 1; node < pass.plan.num_nodes; ++node) {
    const auto& into = pass.plan.into[node];
    nodes_[node] = offsets_[node] || std::any_of(into.begin(), into.end(), [&](const Term& term) { return of(term); });
  }
}

bool Needs::of(const Term& term) const {
  const int64_t k = term.convolution;
  return nodes_[term.source] || (wanted_.gates && term.gate >= 0) || (k >= 0 && (wanted_.weight[k] || wanted_.norm[k]));
}

bool Needs::gates_out_of(int64_t node) const {
  const auto& out_of = pass_.plan.out_of[node];
  return wanted_.gates &&
         std::any_of(out_of.begin(), out_of.end(), [](const Term& term) { return term.convolution < 0 && term.gate >= 0; });
}

bool Needs::value_of(int64_t node) const {
  const auto& out_of = pass_.plan.out_of[node];
  return gates_out_of(node) ||
         (nodes_[node] && std::any_of(out_of.begin(), out_of.end(), [](const Term& t) { return t.reads_source_backward(); }));
}

std::vector<std::vector<int64_t>> gradients_read_last_at(const Plan& plan) {
  std::vector<std::vector<int64_t>> read(plan.num_nodes);
  for (int64_t node = 1; node < plan.num_nodes; ++node) {
    int64_t lowest = node;
    for (const Term& term : plan.into[node]) lowest = std::min(lowest, term.source);
    read[lowest].push_back(node);
  }
  return read;
}

void run_forward(Pass& pass) {
  find_shapes(pass);
  pass.batch = pass.nodes[0].size(0);
  pass.type = pass.nodes[0].scalar_type();
  pass.nodes.resize(pass.plan.num_nodes);
  pass.z.resize(pass.convolutions.size());
  pass.backend = backend_of(pass.nodes[0]);
  pass.backend->forward(pass);
}

Gradients run_backward(Pass& pass, const Tensor& dy, const Wanted& wanted) {
  Gradients gradients = pass.backend->backward(pass, dy, wanted);
  add_cancelled(pass, wanted, gradients);
  leave_out_what_does_not_count(pass, gradients);
  return gradients;
}

}  // namespace advnas
