// What follows the last cell of a network: batch norm, ReLU and the mean over the pixels, for one image [pixels, channels].
//
//   forward    h = mean over the pixels of max(0, scale x + shift)
//   backward   g = 0 where scale x + shift <= 0, else dh / pixels,      s1 = sum g,   s2 = sum g (x - mean)
//              dx = of_dy g + of_z x + constant
//
// All coefficients are rows of [channels]; batch_norm_math.h has them. Only x is kept for the backward pass.
#pragma once

#include <cstdint>

#include "batch_norm_math.h"

namespace advnas {

template <class T>
using HeadForward = void(const T* x, const ScaleShift<const T*>& map, int64_t pixels, int64_t channels, T* h);

template <class T>
using HeadSums = void(const T* x, const T* dh, const ScaleShift<const T*>& map, const T* mean, int64_t pixels, int64_t channels,
                      double* s1, double* s2);

template <class T>
using HeadBackward = void(const T* x, const T* dh, const ScaleShift<const T*>& map, const NormGradient<const T*>& gradient,
                          int64_t pixels, int64_t channels, T* dx);

}  // namespace advnas
