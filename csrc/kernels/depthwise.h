// Depthwise convolutions: each channel by itself.
//
//   y[h, w, c] = sum_{r, s} frame[stride h + dilation r, stride w + dilation s, c] weight[r, s, c]
//
// over frames of extent(size, dilation), see convolution.h. The input gradient is the same sum with stride 1 and the weight
// rotated by 180 degrees, over the gradient spread out: the pixels that a stride passes over are 0. The weight gradient is
//
//   dweight[r, s, c] = sum_{h, w} frame[stride h + dilation r, stride w + dilation s, c] dy[h, w, c],    or += with `add`.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "image_shape.h"

namespace advnas {

struct DepthwiseShape {
  ImageShape image;  // of the input
  int64_t size, dilation, stride = 1;

  ADVNAS_HOST_DEVICE int64_t extent() const { return 1 + (size - 1) * dilation; }
  ADVNAS_HOST_DEVICE ImageShape output() const {
    return {(image.height + stride - 1) / stride, (image.width + stride - 1) / stride, image.channels};
  }
  // What the input gradient runs over.
  ADVNAS_HOST_DEVICE DepthwiseShape dense() const { return {image, size, dilation}; }
};

template <class T>
using Depthwise = void(const T* frames, const T* weight, T* y, const DepthwiseShape& shape, int64_t images);

template <class T>
using DepthwiseWeightGradient = void(const T* frames, const T* dy, T* dweight, const DepthwiseShape& shape, int64_t images,
                                     bool add);

// frames of the input's shape: dy[h, w] at pixel (stride h, stride w), 0 elsewhere and at the border.
template <class T>
using DepthwiseSpread = void(const T* dy, T* frames, const DepthwiseShape& shape, int64_t images);

}  // namespace advnas
