#include "plan.h"

#include <algorithm>
#include <iterator>

namespace advnas {
namespace {

template <class Predicate>
std::vector<Term> filter(const std::vector<Term>& terms, const Predicate& keep) {
  std::vector<Term> kept;
  std::copy_if(terms.begin(), terms.end(), std::back_inserter(kept), keep);
  return kept;
}

}  // namespace

std::vector<Term> Plan::into(int64_t target) const {
  return filter(terms, [&](const Term& term) { return term.target == target; });
}

std::vector<Term> Plan::out_of(int64_t source) const {
  return filter(terms, [&](const Term& term) { return term.source == source; });
}

Plan make_plan(const std::vector<Piece>& pieces, const std::vector<Link>& links, const std::vector<bool>& silent,
               int64_t num_nodes) {
  Plan plan{num_nodes, {}, std::vector<bool>(num_nodes, false)};
  int64_t convolution = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    plan.terms.push_back({links[i], pieces[i], pieces[i].kind == Kind::kConvolution ? convolution++ : -1});
  }
  // In reverse every consumer of a node is seen before what the node consumes.
  plan.live.back() = true;
  std::vector<bool> runs(plan.terms.size());
  for (int64_t i = int64_t(plan.terms.size()) - 1; i >= 0; --i) {
    const Term& term = plan.terms[i];
    runs[i] = plan.live[term.target] && term.piece.kind != Kind::kZero && !(term.gate >= 0 && silent[term.gate]);
    if (runs[i]) plan.live[term.source] = true;
  }
  plan.terms = filter(plan.terms, [&](const Term& term) { return runs[&term - plan.terms.data()]; });
  return plan;
}

}  // namespace advnas
