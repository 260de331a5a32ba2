// What bindings.cpp gives to Python. gate.cpp and recurrent.cpp register their operators themselves.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <tuple>
#include <vector>

#include "plan.h"

namespace advnas {

// One native step of a path, with what it takes of the module that holds its parameters. Tensors are of a convolution and its
// batch norm; undefined where there are none.
struct Step {
  Piece piece;
  bool use_running = false;  // whether batch norm takes the running statistics, not those of the batch
  at::Tensor weight, depthwise, bias;
  at::Tensor gamma, beta;
  at::Tensor running_mean, running_var, batches_tracked;

  // With the convolutions' weights in another type, by a conversion that autograd knows. Batch norm keeps its own.
  Step with_weights_in(at::ScalarType type) const;
};

// Autograd functions run in the types that they are given, whatever surrounds them.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// A step, its source, its target and the place of its gate: see Link.
using LinkedStep = std::tuple<const Step*, int64_t, int64_t, int64_t>;

// A graph of nodes on one path, with autograd: python/advnas_ext/reference.py has the formula, python/advnas_ext/native.py the
// checks of shapes and types.
//
// images: [batch, channels, height, width], float32 or float64 on the host, float32, float16 or bfloat16 on the device. gates:
// any shape; Link::gate is a place in it, flattened; their gradient goes to the device where they are. gate_values: the same
// values, on the host, so that nobody waits for a device. offsets: zeros, or none; offset k modulo their number is added to node
// offset_targets[k], to none if that is -1. steps: in the order that make_plan() wants.
at::Tensor cell(const at::Tensor& images, const at::Tensor& gates, const at::Tensor& gate_values,
                const std::optional<at::Tensor>& offsets, const std::vector<int64_t>& offset_targets,
                const std::vector<LinkedStep>& steps, int64_t num_nodes);

// Batch norm, ReLU and the mean over the pixels, with autograd; python/advnas_ext/head.py has the checks.
//
// x: [batch, channels, height, width], float32 or float64 on the host. gamma, beta: [channels] of its type, or none.
// running_mean, running_var, batches_tracked: [channels] and one int64, or none. use_running: whether batch norm takes them, not
// the batch's. Returns [batch, channels].
at::Tensor head(const at::Tensor& x, const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta,
                const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
                const std::optional<at::Tensor>& batches_tracked, bool use_running, double eps, double momentum);

}  // namespace advnas
