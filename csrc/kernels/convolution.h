// Stride-1 convolutions that keep the image size, for one image. Odd kernel sizes, zero padding.
//
//   forward            z[h, w, o]  = sum_{r, s, i} relu(x)[h + r - p, w + s - p, i] weight[o, i, r, s],          p = size / 2
//   input gradient     drelu       = the same sum over dz, with the weight rotated by 180 degrees and i, o exchanged
//   weight gradient    dweight[o, i, r, s] = sum_{h, w} relu(x)[h + r - p, w + s - p, i] dz[h, w, o]
//
// An image is first copied into a frame, with a border of p zero pixels, and on the way rectified (pad_relu) or turned into the
// gradient before batch norm (pad_gradient): the sums then need no tests at the border. A frame is [height + 2p, width + 2p,
// channels].
//
// Weights are packed as [r, s, in, out], and so is the weight gradient.
#pragma once

#include <cstdint>

namespace advnas {

struct ConvolutionShape {
  int64_t height, width, in, out, size;
};

inline int64_t frame_elements(int64_t height, int64_t width, int64_t channels, int64_t size) {
  const int64_t border = size / 2 * 2;
  return (height + border) * (width + border) * channels;
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
