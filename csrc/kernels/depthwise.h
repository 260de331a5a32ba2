// Depthwise convolutions with stride 1: each channel by itself.
//
//   y[h, w, c] = sum_{r, s} frame[h + dilation r, w + dilation s, c] weight[r, s, c]
//
// over frames of extent(size, dilation), see convolution.h. The input gradient is the same sum over the gradient with the weight
// rotated by 180 degrees; the weight gradient is
//
//   dweight[r, s, c] = sum_{h, w} frame[h + dilation r, w + dilation s, c] dy[h, w, c],    or += with `add`.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "image_shape.h"

namespace advnas {

struct DepthwiseShape {
  ImageShape image;
  int64_t size, dilation;

  ADVNAS_HOST_DEVICE int64_t extent() const { return 1 + (size - 1) * dilation; }
};

template <class T>
using Depthwise = void(const T* frames, const T* weight, T* y, const DepthwiseShape& shape, int64_t images);

template <class T>
using DepthwiseWeightGradient = void(const T* frames, const T* dy, T* dweight, const DepthwiseShape& shape, int64_t images,
                                     bool add);

}  // namespace advnas
