// 3x3 average pooling with stride 1: the mean over the pixels that exist. Shared by the CPU and the CUDA side.
#pragma once

#include "host_device.h"

namespace advnas {

// How many of i - 1, i, i + 1 lie in [0, size). The number of pixels that a mean is over is one of rows times one of columns.
ADVNAS_HOST_DEVICE inline int pool_window(long i, long size) { return (i > 0) + 1 + (i + 1 < size); }

}  // namespace advnas
