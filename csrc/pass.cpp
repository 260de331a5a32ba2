// Which device runs a pass, and what both sides need.
#include "pass.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "convolver.h"
#include "cuda/pass.h"
#include "device.h"
#include "images.h"

namespace advnas {
namespace {

using at::Tensor;

void check(const Term& term, const Convolution& convolution, const ImageShape& source, const ImageShape& target, int64_t batch) {
  const int64_t in = convolution.depthwise.defined() ? convolution.depthwise.size(0) : convolution.weight.size(1);
  TORCH_CHECK_VALUE(source.channels == in, "advnas_ext: a convolution takes ", in, " channels, got ", source.channels);
  for (const Tensor& row : {convolution.bias, convolution.gamma, convolution.beta}) {
    TORCH_CHECK_VALUE(!row.defined() || row.numel() == target.channels,
                      "advnas_ext: bias and batch norm after a convolution must have ", target.channels, " values, got ",
                      row.numel());
  }
  TORCH_CHECK_VALUE(convolution.statistics != Statistics::kBatch || batch * target.height * target.width != 1,
                    "OnePathCell: batch statistics need more than one value per channel, got one image of ", source.height, "x",
                    source.width, "; use more or larger images, or running statistics and eval()");
  TORCH_CHECK_VALUE(!convolution.depthwise.defined() || (term.piece.stride == 1 && convolution.weight.size(2) == 1),
                    "advnas_ext: after a depthwise convolution comes one with size 1 and stride 1");
}

}  // namespace

Row row_of(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  Row row(dense.numel());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dense.scalar_type(), "row_of",
                                  [&] { std::copy_n(dense.const_data_ptr<scalar_t>(), row.size(), row.begin()); });
  return row;
}

Tensor tensor_of(const Row& row) {
  const Tensor tensor = at::empty({int64_t(row.size())}, at::kDouble);
  std::copy(row.begin(), row.end(), tensor.mutable_data_ptr<double>());
  return tensor;
}

// A node that nothing reaches has the shape of x.
void find_shapes(Pass& pass) {
  const ImageShape x = shape_of(pass.nodes[0]);
  pass.shapes.assign(pass.plan.num_nodes, x);
  for (int64_t node = 1; node < pass.plan.num_nodes; ++node) {
    const auto terms = pass.plan.into(node);
    for (size_t k = 0; k < terms.size(); ++k) {
      const Term& term = terms[k];
      ImageShape shape = pass.shapes[term.source];
      if (term.convolution >= 0) {
        const Convolution& convolution = pass.convolutions[term.convolution];
        shape = output_shape(shape, term.piece, convolution.weight.size(0));
        check(term, convolution, pass.shapes[term.source], shape, pass.nodes[0].size(0));
      }
      ImageShape& expected = pass.shapes[node];
      if (k == 0) expected = shape;
      TORCH_CHECK_VALUE(shape.height == expected.height && shape.width == expected.width && shape.channels == expected.channels,
                        "advnas_ext: operations into one node differ in the shapes of their outputs, ", shape.channels, "x",
                        shape.height, "x", shape.width, " and ", expected.channels, "x", expected.height, "x", expected.width);
    }
  }
}

void run_forward(Pass& pass) {
  find_shapes(pass);
  pass.nodes.resize(pass.plan.num_nodes);
  pass.z.resize(pass.convolutions.size());
#ifdef ADVNAS_DEVICE
  if (on_device(pass.nodes[0])) return cuda::run_forward(pass);
#endif
  run_forward_cpu(pass);
}

Gradients run_backward(const Pass& pass, const Tensor& dy, const Wanted& wanted) {
#ifdef ADVNAS_DEVICE
  if (on_device(dy)) return cuda::run_backward(pass, dy, wanted);
#endif
  return run_backward_cpu(pass, dy, wanted);
}

}  // namespace advnas
