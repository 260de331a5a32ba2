// Stride-1 convolutions that keep the image size, for one image. Odd kernel sizes, zero padding.
//
//   forward            z[h, w, o]  = sum_{r, s, i} relu(x)[h + r - p, w + s - p, i] weight[o, i, r, s],          p = size / 2
//   input gradient     drelu       = the same sum over dz, with the weight rotated by 180 degrees and i, o exchanged
//   weight gradient    dweight[o, i, r, s] = sum_{h, w} relu(x)[h + r - p, w + s - p, i] dz[h, w, o]
//
// An image is first copied into a frame, with a border of zero pixels, and on the way rectified (pad_relu) or turned into the
// gradient before batch norm (pad_gradient): the sums then need no tests at the border. In a frame [frame_side(height),
// frame_side(width), channels] the image begins p pixels from the corner.
//
// Weights are packed as [r, s, in, out], and so is the weight gradient.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advnas {

struct ConvolutionShape {
  int64_t height, width, in, out, size;
};

// For 3x3 the image is rounded up to whole tiles of 4 pixels (winograd.h).
ADVNAS_HOST_DEVICE inline int64_t frame_side(int64_t side, int64_t size) {
  return size == 3 ? (side + 3) / 4 * 4 + 2 : side + size - 1;
}
inline int64_t frame_elements(int64_t height, int64_t width, int64_t channels, int64_t size) {
  return frame_side(height, size) * frame_side(width, size) * channels;
}

// frame = relu(x) inside, 0 at the border.
template <class T>
using PadRelu = void(const T* x, T* frame, int64_t height, int64_t width, int64_t channels, int64_t size);

// frame = of_dy dy + of_z z + constant inside (coefficients [channels]: batch_norm_math.h), 0 at the border.
template <class T>
using PadGradient = void(const T* dy, const T* z, const T* of_dy, const T* of_z, const T* constant, T* frame, int64_t height,
                         int64_t width, int64_t channels, int64_t size);

// y [height, width, out] = the sum over the frame.
template <class T>
using Convolve = void(const T* frame, const T* weight, T* y, const ConvolutionShape& shape);

// dweight [size, size, in, out] += the sums over both frames; frame of the same `size`.
template <class T>
using ConvolveWeightGradient = void(const T* frame, const T* dz_frame, T* dweight, const ConvolutionShape& shape);

// dx += [x > 0] drelu, `size` elements.
template <class T>
using AddMasked = void(const T* drelu, const T* x, T* dx, int64_t size);

}  // namespace advnas
