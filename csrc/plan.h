// What a path makes of a cell: the operations that run, in the order of their edges.
#pragma once

#include <cstdint>
#include <vector>

namespace advnas {

// The native pieces that candidate operations are made of.
enum class Piece { kZero, kIdentity, kAvgPool, kReluConvBn };

// One picked operation that runs: nodes[target] += gate * op(nodes[source]).
struct Term {
  int64_t gate;  // its place in the flattened gates
  int64_t source, target;
  Piece piece;
  int64_t convolution;  // its place among the picked convolutions, dead ones included; -1 for other pieces
};

struct Plan {
  int64_t num_nodes;
  std::vector<Term> terms;
  std::vector<bool> live;  // of each node: whether the output depends on it

  std::vector<Term> into(int64_t target) const;
  std::vector<Term> out_of(int64_t source) const;
};

// pieces: [num_edges * picks], edges in the order 1<-0, 2<-0, 2<-1, 3<-0, ... silent: which have a gate of 0 whose gradient
// nobody wants. Drops what contributes nothing: zeros, silent ones, and edges into a node that does not reach the output.
Plan make_plan(const std::vector<Piece>& pieces, const std::vector<bool>& silent, int64_t num_nodes);

}  // namespace advnas
