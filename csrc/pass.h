// One forward and one backward pass of a graph of nodes on one path, without autograd: a cell, a reduction block, a stem.
// Formula: advnas_ext/reference.py.
//
// Both passes go node by node, and at each node once over the images of the batch, a few images at a time while they are in the
// cache:
//
//   forward, node s     gather what arrives at s (normalised, gated, pooled, added), then run the convolutions that leave s, and
//                       sum their moments for batch norm, which the next nodes need complete;
//   backward, node s    gather the gradient of s from the nodes that it feeds, run the gradients of the convolutions that leave
//   s,
//                       then sum what batch norm and the gates of the convolutions into s need.
//
// On the host each thread has a range of images; sums over the images are taken in their order. On a GPU (cuda/pass.h) a node's
// work is a launch over the whole batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "plan.h"

namespace advnas {

using Row = std::vector<double>;  // a value a channel

enum class Statistics { kBatch, kRunning, kNone };

// Of one convolution on the host: parameters, and the statistics of its output without its bias.
struct Rows {
  Row bias, gamma, beta, mean, rstd;
};

// One picked convolution with its batch norm. Tensors are undefined where there are none.
struct Convolution {
  at::Tensor weight;     // [out, in, size, size]
  at::Tensor depthwise;  // [in, 1, size, size]; then the weight is 1x1 and comes after it
  at::Tensor bias, gamma, beta;
  at::Tensor running_mean, running_var, batches_tracked;
  Statistics statistics;
  // The forward pass leaves these for the backward pass: on the host, or on the device.
  Rows rows;
  at::Tensor device_rows;  // kernels/norm.h
};

struct Pass {
  Plan plan;
  Row gates;
  std::vector<int64_t> offset_targets;  // the node that each offset is added to
  std::vector<Convolution> convolutions;
  // Activations, [batch, channels, height, width] in channels_last order.
  std::vector<at::Tensor> nodes;   // x is the first
  std::vector<at::Tensor> relus;   // on the device, of the nodes that a convolution of the library takes through a ReLU
  std::vector<at::Tensor> z;       // of each convolution that ran
  std::vector<ImageShape> shapes;  // of each live node

  double gate_of(const Term& term) const { return term.gate < 0 ? 1 : gates[term.gate]; }
};

// Takes nodes[0]; leaves the other nodes, z, shapes and the statistics, and updates running statistics in training. On the device
// a node is left out that nobody reads but through its ReLU.
void run_forward(Pass& pass);

struct Wanted {
  bool x, gates, offsets;
  std::vector<bool> weight;  // of each convolution, its depthwise part included
};

// Undefined where not wanted or not run. On the device of x; in any floating point type but for x and the weights.
struct Gradients {
  at::Tensor x, gates, offsets;  // gates and offsets flattened
  std::vector<at::Tensor> weight, depthwise, gamma, beta, bias;
};

// dy: gradient of the last node. A node's value is read only if a convolution leaves it, or if the
// gates' gradients are wanted.
Gradients run_backward(const Pass& pass, const at::Tensor& dy, const Wanted& wanted);

// The parts of the two above.
void find_shapes(Pass& pass);
void run_forward_cpu(Pass& pass);
Gradients run_backward_cpu(const Pass& pass, const at::Tensor& dy, const Wanted& wanted);

Row row_of(const at::Tensor& tensor);
at::Tensor tensor_of(const Row& row);

}  // namespace advnas
