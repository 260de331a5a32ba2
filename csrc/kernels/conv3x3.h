// 3x3 convolution with zero padding of 1, by Winograd's F(4x4, 3x3): 36 products for a tile of 4x4 outputs instead of 144.
//
//   z[h, w, o] = sum_{r, s, i} relu(x)[h + r - 1, w + s - 1, i] weight[o, i, r, s]
//
// For each 6x6 patch d of the input, which overlaps the next by 2, and each pair of channels (Lavin and Gray, 2016):
//
//   forward            Z  = A^T [ sum_i (G g_oi G^T) . (B^T d_i B) ] A                            Z: 4x4 outputs
//   input gradient     the same over dz, with the weight rotated by 180 degrees and in, out exchanged
//   weight gradient    dg_oi = G^T [ sum over tiles (B^T d_i B) . (A dZ_o A^T) ] G
//
// where . multiplies place by place of 6x6: for each of the 36 places the sums are a matrix product over channels, or over tiles.
#pragma once

#include "conv.h"

namespace advnas::cpu::ADVNAS_ISA {

// T: float or double.
template <class T>
ConvKernels<T> conv3x3_kernels();

}  // namespace advnas::cpu::ADVNAS_ISA
