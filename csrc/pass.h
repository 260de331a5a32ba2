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
// Each thread has a range of images; sums over the images are taken in their order.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "plan.h"

namespace advnas {

using Row = std::vector<double>;  // a value a channel

enum class Statistics { kBatch, kRunning, kNone };

// One picked convolution with its batch norm. Tensors of running statistics are undefined where there are none.
struct Convolution {
  at::Tensor weight;     // [out, in, size, size]
  at::Tensor depthwise;  // [in, 1, size, size], or undefined; then the weight is 1x1 and comes after it
  at::Tensor running_mean, running_var, batches_tracked;
  Statistics statistics;
  Row bias, gamma, beta;
  Row mean, rstd;  // forward leaves the statistics of z, the convolution's output without its bias
};

struct Pass {
  Plan plan;
  Row gates;
  std::vector<int64_t> offset_targets;  // the node that each offset is added to
  std::vector<Convolution> convolutions;
  // Activations, [batch, channels, height, width] in channels_last order, float32 or float64, on the host.
  std::vector<at::Tensor> nodes;   // x is the first
  std::vector<at::Tensor> z;       // of each convolution that ran
  std::vector<ImageShape> shapes;  // of each live node

  double gate_of(const Term& term) const { return term.gate < 0 ? 1 : gates[term.gate]; }
};

// Takes nodes[0]; leaves the other nodes, z, shapes and the statistics, and updates running statistics in training.
void run_forward(Pass& pass);

struct Wanted {
  bool x, gates, offsets;
  std::vector<bool> weight;  // of each convolution, its depthwise part included
};

struct Gradients {
  at::Tensor x;                               // undefined if not wanted
  Row gates, offsets;                         // complete only if wanted
  std::vector<at::Tensor> weight, depthwise;  // undefined if not wanted or not run
  std::vector<Row> gamma, beta, bias;         // empty if not run
};

// dy: gradient of the last node, dense in channels_last order. A node's value is read only if a convolution leaves it, or if the
// gates' gradients are wanted.
Gradients run_backward(const Pass& pass, const at::Tensor& dy, const Wanted& wanted);

}  // namespace advnas
