// The head on the host: two passes over the images forward (statistics, features) and two backward (sums, gradient), since batch
// norm needs the whole batch in between.
#pragma once

#include "statistics.h"

namespace advnas {

// x: [batch, channels, height, width] in channels_last order. Leaves `state` for the backward pass; returns [batch, channels].
at::Tensor head_forward(const at::Tensor& x, const Normalisation& norm, NormState& state, double eps, double momentum);

struct HeadGradients {
  at::Tensor x, gamma, beta;  // of the type of x
};
// dh: [batch, channels], dense.
HeadGradients head_backward(const at::Tensor& x, const at::Tensor& dh, const Normalisation& norm, const NormState& state,
                            bool wants_x);

}  // namespace advnas
