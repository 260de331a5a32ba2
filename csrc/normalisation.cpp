#include "normalisation.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace advnas {

using at::Tensor;

Row row_of(const Tensor& tensor) {
  const Tensor dense = tensor.resolve_neg().contiguous();
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

void check_rows(const Normalisation& norm, int64_t channels, at::Device device) {
  for (const Tensor& row : {norm.bias, norm.gamma, norm.beta, norm.running_mean, norm.running_var}) {
    if (!row.defined()) continue;
    TORCH_CHECK_VALUE(row.numel() == channels, "advnas_ext: bias and batch norm must have ", channels,
                      " values, one a channel, got ", row.numel());
    TORCH_CHECK_VALUE(row.device() == device, "advnas_ext: the images are on ", device, " and batch norm on ", row.device(),
                      "; move one of them with .to()");
  }
}

}  // namespace advnas
