// Convolutions for a few images. Odd kernel sizes, zero padding of size / 2, any stride.
//
//   forward            z[h, w, o]  = sum_{r, s, i} p(x)[stride h + r - size/2, stride w + s - size/2, i] weight[o, i, r, s]
//   input gradient     dp[h, w, i] = sum_{r, s, o} dz[(h + size/2 - r) / stride, (w + size/2 - s) / stride, o] weight[o, i, r, s]
//                      over the r, s that divide
//   weight gradient    dweight[o, i, r, s] = sum_{h, w} p(x)[stride h + r - size/2, stride w + s - size/2, i] dz[h, w, o]
//
// p is the prologue: nothing, ReLU, or the mean of 2x2 pixels. Images are first copied into frames, with a border of zero
// pixels, and on the way go through p (frame_input) or become the gradient before batch norm (frame_gradient): the sums then need
// no tests at the border. In a frame [frame_side(height), frame_side(width), channels] the image begins size/2 pixels from the
// corner. Frames and images of a batch follow each other.
//
// Weights are packed as [r, s, in, out] for the forward pass, and so is the weight gradient. For the input gradient they are
// packed phase by phase: the pixels with h % stride = a and w % stride = b take the taps of phase (a, b) only. Phases follow each
// other, each [taps of rows, taps of columns, out, in] with falling r and s. With stride 1 that is one phase, the weight rotated.
#pragma once

#include <cstdint>

#include "batch_norm_math.h"
#include "host_device.h"
#include "image_shape.h"
#include "pool_math.h"

namespace advnas {

enum class Prologue { kNothing, kRelu, kMean2 };

// What the convolution itself takes: height and width are those of p(x).
struct ConvolutionShape {
  int64_t height, width, in, out, size, stride = 1;

  ADVNAS_HOST_DEVICE int64_t out_height() const { return (height + stride - 1) / stride; }
  ADVNAS_HOST_DEVICE int64_t out_width() const { return (width + stride - 1) / stride; }
  ADVNAS_HOST_DEVICE ImageShape input() const { return {height, width, in}; }
  ADVNAS_HOST_DEVICE ImageShape output() const { return {out_height(), out_width(), out}; }
};

// For 3x3 the image is rounded up to whole tiles of 4 pixels (winograd.h).
ADVNAS_HOST_DEVICE inline int64_t frame_side(int64_t side, int64_t size) {
  return size == 3 ? (side + 3) / 4 * 4 + 2 : side + size - 1;
}
ADVNAS_HOST_DEVICE inline int64_t frame_elements(const ImageShape& image, int64_t size) {
  return frame_side(image.height, size) * frame_side(image.width, size) * image.channels;
}

// The taps of a phase along one axis: those r = last, last - stride, ... >= 0, which meet dz from `offset` pixels on.
struct Phase {
  int64_t taps, last, offset;
};
ADVNAS_HOST_DEVICE inline Phase phase_of(int64_t phase, int64_t size, int64_t stride) {
  const int64_t shifted = phase + size / 2, first = shifted % stride;
  if (first >= size) return {0, 0, 0};
  const int64_t last = first + (size - 1 - first) / stride * stride;
  return {(last - first) / stride + 1, last, (shifted - last) / stride};
}

ADVNAS_HOST_DEVICE inline ImageShape shape_after_prologue(const ImageShape& x, Prologue prologue) {
  return prologue == Prologue::kMean2 ? ImageShape{halved(x.height), halved(x.width), x.channels} : x;
}

// frames = p(x) inside, 0 at the border.
template <class T>
using FrameInput = void(const T* x, T* frames, const ImageShape& shape, int64_t images, Prologue prologue, int64_t size);

// The gradient of a convolution's output z, before batch norm.
template <class T>
struct OutputGradient {
  const T *dy, *z;
  NormGradient<const T*> norm;  // [channels] each
};
// frames = dz inside, 0 at the border.
template <class T>
using FrameGradient = void(const OutputGradient<T>& gradient, T* frames, const ImageShape& shape, int64_t images, int64_t size);

// dx = the gradient of p, or dx += with `add`; dp of p's shape.
template <class T>
using PrologueGradient = void(const T* dp, const T* x, T* dx, const ImageShape& shape, int64_t images, Prologue prologue,
                              bool add);

template <class T>
using Convolve = void(const T* frames, const T* weight, T* z, const ConvolutionShape& shape, int64_t images);

// dz_frames: of the output's shape. weight: packed by phases.
template <class T>
using ConvolveInputGradient = void(const T* dz_frames, const T* weight, T* dp, const ConvolutionShape& shape, int64_t images);

// dweight [size, size, in, out] = the sums over both frames of the same `size`, or += with `add`.
template <class T>
using ConvolveWeightGradient = void(const T* frames, const T* dz_frames, T* dweight, const ConvolutionShape& shape,
                                    int64_t images, bool add);

// Adds all shares of sums [shares, places, place] to the first one: `count` values of each place, from `first` on.
template <class T>
using AddShares = void(T* sums, int64_t shares, int64_t places, int64_t place, int64_t first, int64_t count);

}  // namespace advnas
