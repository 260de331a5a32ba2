// Matrix products in registers, which the direct and the Winograd convolution share.
//
// A block of kPixels pixels times kVectors vectors of output channels is kept in registers while all taps and input channels are
// added to it. An input value is one broadcast for kVectors products, a weight vector one load for kPixels of them. The weight
// gradient keeps a block of input channels times output channels, over all pixels of an image.
#pragma once

#include "../convolution.h"
#include "channels.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

#if defined(__AVX512F__)
constexpr int kPixels = 12, kInputs = 12;
#elif defined(__AVX2__)
constexpr int kPixels = 6, kInputs = 6;
#else
constexpr int kPixels = 4, kInputs = 4;
#endif

// y[pixel, channel] for kCount pixels in a row and the channels of kVectors values of V (vectors, or one scalar).
template <class V, int kVectors, int kCount, class T>
inline void convolve_block(const T* frame, const T* weight, T* y, const ConvolutionShape& shape, int64_t frame_stride) {
  constexpr int64_t lanes = int64_t(sizeof(V) / sizeof(T));
  V sum[kCount][kVectors] = {};
  for (int64_t r = 0; r < shape.size; ++r) {
    // The taps of a row of the kernel lie side by side in the frame: one loop over [size, in].
    const T* in = frame + r * frame_stride;
    const T* w = weight + r * shape.size * shape.in * shape.out;
    for (int64_t i = 0; i < shape.size * shape.in; ++i, w += shape.out) {
      V column[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] = load_as<V>(w + v * lanes);
#pragma GCC unroll 16
      for (int p = 0; p < kCount; ++p) {
        const T value = in[p * shape.in + i];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[p][v] += value * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_as(y + p * shape.out + v * lanes, sum[p][v]);
  }
}

template <class V, int kVectors, class T>
inline void convolve_channels(const T* frame, const T* weight, T* y, const ConvolutionShape& shape) {
  const int64_t stride = frame_side(shape.width, shape.size) * shape.in;
  for (int64_t h = 0; h < shape.height; ++h) {
    const T* in = frame + h * stride;
    T* out = y + h * shape.width * shape.out;
    int64_t w = 0;
    for (; w + kPixels <= shape.width; w += kPixels) {
      convolve_block<V, kVectors, kPixels>(in + w * shape.in, weight, out + w * shape.out, shape, stride);
    }
    for (; w + 4 <= shape.width; w += 4) {
      convolve_block<V, kVectors, 4>(in + w * shape.in, weight, out + w * shape.out, shape, stride);
    }
    for (; w + 2 <= shape.width; w += 2) {
      convolve_block<V, kVectors, 2>(in + w * shape.in, weight, out + w * shape.out, shape, stride);
    }
    for (; w < shape.width; ++w) convolve_block<V, kVectors, 1>(in + w * shape.in, weight, out + w * shape.out, shape, stride);
  }
}

// dweight[input, channel] for kCount input channels of one tap.
template <class V, int kVectors, int kCount, class T>
inline void weight_block(const T* frame, const T* dz, T* dweight, const ConvolutionShape& shape) {
  constexpr int64_t lanes = int64_t(sizeof(V) / sizeof(T));
  const int64_t stride = frame_side(shape.width, shape.size);
  V sum[kCount][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = load_as<V>(dweight + i * shape.out + v * lanes);
  }
  for (int64_t h = 0; h < shape.height; ++h) {
    const T* in = frame + h * stride * shape.in;
    const T* gradient = dz + h * stride * shape.out;
    for (int64_t w = 0; w < shape.width; ++w, in += shape.in, gradient += shape.out) {
      V column[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] = load_as<V>(gradient + v * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[i][v] += in[i] * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_as(dweight + i * shape.out + v * lanes, sum[i][v]);
  }
}

template <class V, int kVectors, class T>
inline void weight_channels(const T* frame, const T* dz_frame, T* dweight, const ConvolutionShape& shape) {
  const int64_t padding = shape.size / 2, stride = frame_side(shape.width, shape.size);
  const T* dz = dz_frame + (padding * stride + padding) * shape.out;
  for (int64_t r = 0; r < shape.size; ++r) {
    for (int64_t s = 0; s < shape.size; ++s) {
      const T* in = frame + (r * stride + s) * shape.in;
      T* out = dweight + (r * shape.size + s) * shape.in * shape.out;
      int64_t i = 0;
      for (; i + kInputs <= shape.in; i += kInputs) weight_block<V, kVectors, kInputs>(in + i, dz, out + i * shape.out, shape);
      for (; i + 4 <= shape.in; i += 4) weight_block<V, kVectors, 4>(in + i, dz, out + i * shape.out, shape);
      for (; i + 2 <= shape.in; i += 2) weight_block<V, kVectors, 2>(in + i, dz, out + i * shape.out, shape);
      for (; i < shape.in; ++i) weight_block<V, kVectors, 1>(in + i, dz, out + i * shape.out, shape);
    }
  }
}

// y [height, width, out] = the sums of convolution.h over the frame.
template <class T>
inline void product(const T* frame, const T* weight, T* y, const ConvolutionShape& shape) {
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= shape.out; o += 2 * kLanes<T>) convolve_channels<Vec<T>, 2>(frame, weight + o, y + o, shape);
  for (; o + kLanes<T> <= shape.out; o += kLanes<T>) convolve_channels<Vec<T>, 1>(frame, weight + o, y + o, shape);
  for (; o < shape.out; ++o) convolve_channels<T, 1>(frame, weight + o, y + o, shape);
}

// dweight [size, size, in, out] += the sums over both frames.
template <class T>
inline void weight_product(const T* frame, const T* dz_frame, T* dweight, const ConvolutionShape& shape) {
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= shape.out; o += 2 * kLanes<T>) weight_channels<Vec<T>, 2>(frame, dz_frame + o, dweight + o, shape);
  for (; o + kLanes<T> <= shape.out; o += kLanes<T>) weight_channels<Vec<T>, 1>(frame, dz_frame + o, dweight + o, shape);
  for (; o < shape.out; ++o) weight_channels<T, 1>(frame, dz_frame + o, dweight + o, shape);
}

}  // namespace advnas::cpu::ADVNAS_ISA
