// What a node does to an image on the way, without weights: the parameter-free operations among others. Images keep their size.
//
// A new operation adds its name here, its formula for a row to cpu/arrivals.h and for a column of pixels to cuda/arrivals.cuh.
#pragma once

#include "host_device.h"

namespace advnas {

enum class Arrival {
  kIdentity,
  kAvgPool,  // 3x3, stride 1, over the pixels that exist
  kMaxPool,  // 3x3, stride 1, among the pixels that exist
  // Of a gradient that a convolution gives back, on CUDA, where the node undoes the prologue:
  kMasked,  // a ReLU: only where x > 0
  kHalved,  // the mean of 2x2 pixels: the image has half the size
};

// Whether the gradient depends on what the operation took, not on the gradient of its output alone.
ADVNAS_HOST_DEVICE inline bool gradient_reads_input(Arrival arrival) { return arrival == Arrival::kMaxPool; }

}  // namespace advnas
