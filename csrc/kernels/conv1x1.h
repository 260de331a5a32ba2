// 1x1 convolution: a matrix product over channels at every pixel.
//
//   z[p, o] = sum_i relu(x)[p, i] weight[o, i]
//   dx[p, i] (+)= [x > 0] sum_o dz[p, o] weight[o, i]
//   dweight[o, i] += sum_p relu(x)[p, i] dz[p, o]
#pragma once

#include "conv.h"

namespace advnas::cpu::ADVNAS_ISA {

// T: float or double.
template <class T>
ConvKernels<T> conv1x1_kernels();

}  // namespace advnas::cpu::ADVNAS_ISA
