// The passes of pass.h on a GPU: between the convolutions one launch a node each way, with kernels/{node,norm,pointwise,layout}.h.
// 1x1 convolutions are our own where their channels fit; the others are at::convolution's. Nothing crosses to the host: gates and
// their gradients, batch norm's coefficients and all sums stay in device memory.
//
// Written against the kernels' entry points and ATen only, so that the same file runs on the host with the kernels on the shim
// (tests/cuda_shim), ADVNAS_SHIM, which takes every tensor.
#pragma once

#include "../pass.h"

namespace advnas::cuda {

#if defined(ADVNAS_CUDA) || defined(ADVNAS_SHIM)

inline constexpr bool kBuilt = true;

inline bool takes([[maybe_unused]] const at::Tensor& x) {
#ifdef ADVNAS_SHIM
  return true;
#else
  return x.is_cuda();
#endif
}

void run_forward(Pass& pass);
Gradients run_backward(const Pass& pass, const at::Tensor& dy, const Wanted& wanted);

#else

inline constexpr bool kBuilt = false;

inline bool takes(const at::Tensor&) { return false; }
inline void run_forward(Pass&) {}
inline Gradients run_backward(const Pass&, const at::Tensor&, const Wanted&) { return {}; }

#endif

}  // namespace advnas::cuda
