#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace advnas {

// Batch norm, ReLU and the mean over the pixels, with autograd; python/advnas_ext/head.py has the checks.
//
// x: [batch, channels, height, width], float32 or float64 on the host. gamma, beta: [channels] of its type, or none.
// running_mean, running_var, batches_tracked: [channels] and one int64, or none. use_running: whether batch norm takes them, not
// the batch's. Returns [batch, channels].
at::Tensor head(const at::Tensor& x, const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta,
                const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
                const std::optional<at::Tensor>& batches_tracked, bool use_running, double eps, double momentum);

}  // namespace advnas
