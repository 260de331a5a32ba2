#include "plan.h"

#include <cstddef>

namespace advnas {

Plan make_plan(const std::vector<Piece>& pieces, const std::vector<Link>& links, const std::vector<bool>& silent,
               int64_t num_nodes) {
  Plan plan{num_nodes, std::vector<std::vector<Term>>(num_nodes), std::vector<std::vector<Term>>(num_nodes),
            std::vector<bool>(num_nodes, false), std::vector<Term>(num_nodes)};
  std::vector<Term> terms;
  int64_t convolution = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    terms.push_back({links[i], pieces[i], pieces[i].kind == Kind::kConvolution ? convolution++ : -1});
  }
  // In reverse every consumer of a node is seen before what the node consumes.
  plan.live.back() = true;
  std::vector<bool> runs(terms.size());
  for (std::size_t i = terms.size(); i-- > 0;) {
    const Term& term = terms[i];
    runs[i] = plan.live[term.target] && term.piece.kind != Kind::kZero && !(term.gate >= 0 && silent[term.gate]);
    if (runs[i]) plan.live[term.source] = true;
  }
  for (std::size_t i = terms.size(); i-- > 0;) plan.first[terms[i].target] = terms[i];
  for (std::size_t i = 0; i < terms.size(); ++i) {
    if (!runs[i]) continue;
    plan.into[terms[i].target].push_back(terms[i]);
    plan.out_of[terms[i].source].push_back(terms[i]);
  }
  return plan;
}

}  // namespace advnas
