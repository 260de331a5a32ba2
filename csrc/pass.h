// One forward and one backward pass of a graph of nodes on one path, without autograd: a cell, a stem, or all blocks of a
// supernet. Formula: python/advnas_ext/reference.py.
//
// Both passes go node by node, and at each node once over the images of the batch, a few images at a time while they are in the
// cache:
//
//   forward, node s     gather what arrives at s (normalised, gated, pooled, added), then run the convolutions that leave s, and
//                       sum their moments for batch norm, which the next nodes need complete;
//   backward, node s    gather the gradient of s from the nodes that it feeds, run the gradients of the convolutions that leave
//                       it, then sum what batch norm and the gates of the convolutions into s need.
//
// A node's value, a convolution's output or a gradient is forgotten as soon as nothing reads it any more.
//
// On the host threads take shares of the batch (cpu/shares.h); sums over the images are taken in their order. On a GPU
// (cuda/cuda_backend.h) a node's work is a launch over the whole batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "normalisation.h"
#include "plan.h"

namespace advnas {

// One picked convolution with its batch norm. Tensors are undefined where there are none.
struct Convolution : Normalisation {
  at::Tensor weight;     // [out, in, size, size]
  at::Tensor depthwise;  // [in, 1, size, size]; then the weight is 1x1 and comes after it
};

class Backend;

struct Pass {
  Plan plan;
  Row gates;
  int64_t num_offsets = 0;
  std::vector<int64_t> offset_targets;  // offset k % num_offsets is added to node offset_targets[k]; to none if that is -1
  std::vector<Convolution> convolutions;
  // Whether a backward pass may follow, and whether to the gates.
  bool save = false, save_for_gates = false;
  // Of all activations.
  int64_t batch = 0;
  at::ScalarType type = at::kFloat;
  // Activations, [batch, channels, height, width] in channels_last order.
  std::vector<at::Tensor> nodes;     // x is the first
  std::vector<at::Tensor> z;         // of each convolution that ran
  std::vector<ImageShape> shapes;    // of each live node
  std::shared_ptr<Backend> backend;  // of the device that it runs on

  double gate_of(const Term& term) const { return term.gate < 0 ? 1 : gates[term.gate]; }
  // For a backward pass that leaves this one for another.
  Pass copy() const;
};

// Takes nodes[0]; leaves the last node, what a backward pass needs, shapes and the statistics, and updates running statistics in
// training. On the device a node is left out that nobody reads but through its ReLU.
void run_forward(Pass& pass);

struct Wanted {
  bool x, gates, offsets;
  // Of each convolution: its weight, the depthwise part included; its bias or the parameters of its batch norm.
  std::vector<bool> weight, norm;
};

// Undefined where not wanted or not run. On the device of x; in any floating point type but for x and the weights.
struct Gradients {
  at::Tensor x, gates, offsets;  // gates and offsets flattened
  std::vector<at::Tensor> weight, depthwise, gamma, beta, bias;
};

// dy: gradient of the last node. Takes the activations out of the pass as it goes.
Gradients run_backward(Pass& pass, const at::Tensor& dy, const Wanted& wanted);

// One device's side of a pass: its order of work, and what it keeps for the backward pass besides the activations.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::shared_ptr<Backend> clone() const = 0;
  // As run_forward and run_backward; shapes are known.
  virtual void forward(Pass& pass) = 0;
  virtual Gradients backward(Pass& pass, const at::Tensor& dy, const Wanted& wanted) = 0;
  // Whether the backward pass recomputes the node's value from the outputs of the convolutions that arrive there.
  virtual bool recomputes(int64_t /*node*/) const { return false; }
  // Forgets what it keeps of the node's value in other forms.
  virtual void forget(int64_t /*node*/) {}
  // Of each node, those other forms.
  virtual std::vector<at::Tensor>& kept() { return kept_; }

 private:
  std::vector<at::Tensor> kept_;
};

inline ImageShape shape_of(const at::Tensor& x) { return {x.size(2), x.size(3), x.size(1)}; }
ImageShape output_shape(const ImageShape& x, const Piece& piece, int64_t out_channels);

// Forgets what the forward pass has read at `node` for the last time, or the backward pass.
void forget_read(Pass& pass, int64_t node);
void forget_read_backward(Pass& pass, int64_t node);

// Which parts of a backward pass somebody wants.
class Needs {
 public:
  Needs(const Pass& pass, const Wanted& wanted);
  // Whether anything of the term is wanted that needs the gradient of its target.
  bool of(const Term& term) const;
  // Whether the gradient of the node is wanted, or needed for what is.
  bool of(int64_t node) const { return nodes_[node]; }
  // Whether a gate of an operation without weights that leaves the node wants the node's value.
  bool gates_out_of(int64_t node) const;
  // Whether the gradient of an operation without weights that leaves the node needs the node's value, or its gate's does.
  bool value_of(int64_t node) const;
  bool offset_into(int64_t node) const { return offsets_[node]; }

 private:
  const Pass& pass_;
  const Wanted& wanted_;
  std::vector<bool> nodes_, offsets_;
};

// The lowest node that reads the gradient of each: afterwards it can be forgotten.
std::vector<std::vector<int64_t>> gradients_read_last_at(const Plan& plan);

}  // namespace advnas
