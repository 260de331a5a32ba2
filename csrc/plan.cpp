#include "plan.h"

#include <cstddef>

namespace advnas {
namespace {

bool is_identity(const Piece& piece) { return piece.kind == Kind::kArrival && piece.arrival == Arrival::kIdentity; }

}  // namespace

Plan make_plan(const std::vector<Piece>& pieces, const std::vector<Link>& links, const std::vector<GateState>& gates,
               int64_t num_nodes) {
  Plan plan{num_nodes,
            std::vector<std::vector<Term>>(num_nodes),
            std::vector<std::vector<Term>>(num_nodes),
            std::vector<bool>(num_nodes, false),
            std::vector<bool>(num_nodes, false),
            std::vector<Term>(num_nodes)};
  std::vector<Term> terms;
  int64_t convolution = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    terms.push_back({links[i], pieces[i], pieces[i].kind == Kind::kConvolution ? convolution++ : -1});
  }
  const auto is = [&](const Term& term, GateState what) { return term.gate >= 0 && gates[term.gate] == what; };
  // In reverse every consumer of a node is seen before what the node consumes.
  plan.live.back() = plan.counts.back() = true;
  std::vector<bool> runs(terms.size());
  for (std::size_t i = terms.size(); i-- > 0;) {
    const Term& term = terms[i];
    runs[i] = plan.live[term.target] && term.piece.kind != Kind::kZero && !is(term, GateState::kZero);
    if (!runs[i]) continue;
    plan.live[term.source] = true;
    if (plan.counts[term.target] && !term.is_baseline()) plan.counts[term.source] = true;
  }
  for (std::size_t i = terms.size(); i-- > 0;) plan.first[terms[i].target] = terms[i];
  for (std::size_t i = 0; i < terms.size(); ++i) {
    if (runs[i]) plan.into[terms[i].target].push_back(terms[i]);
  }
  std::vector<int64_t> same(num_nodes);
  for (int64_t node = 0; node < num_nodes; ++node) {
    auto& into = plan.into[node];
    for (Term& term : into) term.source = same[term.source];
    same[node] = node;
    if (node + 1 < num_nodes && into.size() == 1 && is_identity(into[0].piece) && is(into[0], GateState::kOne)) {
      same[node] = into[0].source;
      plan.live[node] = false;
      into.clear();
    }
    for (const Term& term : into) plan.out_of[term.source].push_back(term);
  }
  return plan;
}

}  // namespace advnas
