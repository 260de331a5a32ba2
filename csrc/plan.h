// What a path makes of a graph of nodes: the operations that run, in the order of their targets.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/arrival.h"
#include "kernels/convolution.h"

namespace advnas {

// kArrival: an operation without weights, which the node that it reaches does. kBaseline: adds nothing, and its gate, of 0, has
// the gradient of an identity's: what the operations of an edge are compared with.
enum class Kind { kZero, kArrival, kConvolution, kBaseline };

// What an operation is made of, as far as the weights do not say it.
struct Piece {
  Kind kind = Kind::kZero;
  Arrival arrival = Arrival::kIdentity;
  // Of a convolution: its prologue, and whether batch norm follows.
  Prologue prologue = Prologue::kNothing;
  bool normalise = false;
  int64_t stride = 1, dilation = 1;
  double eps = 0, momentum = 0;
};

// One picked operation: nodes[target] += gates[gate] * op(nodes[source]); without a gate it is -1.
struct Link {
  int64_t source, target, gate;
};

struct Term : Link {
  Piece piece;
  int64_t convolution = -1;  // its place among the picked convolutions, dead ones included; -1 for other pieces

  bool is_baseline() const { return piece.kind == Kind::kBaseline; }
  // Whether its gradient depends on the value of its source.
  bool reads_source_backward() const { return convolution >= 0 || gradient_reads_input(piece.arrival); }
};

struct Plan {
  int64_t num_nodes;
  std::vector<std::vector<Term>> into, out_of;  // of each node: what arrives there, what leaves it
  std::vector<bool> live;                       // of each node: whether the output or a baseline depends on it
  std::vector<bool> counts;                     // of each node: whether the output does
  std::vector<Term> first;                      // of each node: the first link to it, run or not; it has the node's shape
};

// A gate whose gradient is wanted, or the value of one whose gradient is not.
enum class GateState { kWanted, kZero, kOne, kOther };

// pieces, links: one for each picked operation; targets do not fall, a source is below its target, the last node is the output.
// Drops what contributes nothing: zeros, gates of 0, and edges into a node that does not reach the output. A node where nothing
// arrives but another node, through a gate of 1, is that node.
Plan make_plan(const std::vector<Piece>& pieces, const std::vector<Link>& links, const std::vector<GateState>& gates,
               int64_t num_nodes);

}  // namespace advnas
