// Pooling: the mean over the pixels that exist, of 3x3 with stride 1 or of 2x2 with stride 2, and the maximum of 3x3. Shared by
// the CPU and the CUDA side.
#pragma once

#include "host_device.h"

namespace advnas {

// How many of i - 1, i, i + 1 lie in [0, size). The number of pixels that a mean is over is one of rows times one of columns.
ADVNAS_HOST_DEVICE inline int pool_window(long i, long size) { return (i > 0) + 1 + (i + 1 < size); }

// Whether a value takes the place of the greatest so far. In the order of the window's pixels the gradient then goes to the first
// of equal values and to the last NaN, as in torch.nn.MaxPool2d. V is a scalar or a vector of them.
template <class V>
ADVNAS_HOST_DEVICE inline auto is_greater(V value, V greatest) {
  return (value > greatest) | (value != value);
}

// Of 2x2: the size of the result, and how many of 2i, 2i + 1 lie in [0, size).
template <class Int>
ADVNAS_HOST_DEVICE inline Int halved(Int size) {
  return (size + 1) / 2;
}
ADVNAS_HOST_DEVICE inline int halved_window(int i, int size) { return 1 + (2 * i + 1 < size); }

}  // namespace advnas
