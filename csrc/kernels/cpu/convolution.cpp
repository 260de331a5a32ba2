// Direct convolution as a matrix product in registers: a block of kPixels output pixels times kVectors vectors of output channels
// is kept in registers while all taps and input channels are added to it. An input value is one broadcast for kVectors products,
// a weight vector one load for kPixels of them. The weight gradient keeps a block of input channels times output channels, over
// all pixels of a row.
#include "../convolution.h"

#include "channels.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

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
  const int64_t stride = (shape.width + shape.size / 2 * 2) * shape.in;
  for (int64_t h = 0; h < shape.height; ++h) {
    const T* in = frame + h * stride;
    T* out = y + h * shape.width * shape.out;
    int64_t w = 0;
    for (; w + kPixels <= shape.width; w += kPixels) {
      convolve_block<V, kVectors, kPixels>(in + w * shape.in, weight, out + w * shape.out, shape, stride);
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
  const int64_t border = shape.size / 2 * 2;
  V sum[kCount][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = load_as<V>(dweight + i * shape.out + v * lanes);
  }
  for (int64_t h = 0; h < shape.height; ++h) {
    const T* in = frame + h * (shape.width + border) * shape.in;
    const T* gradient = dz + h * (shape.width + border) * shape.out;
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
  const int64_t padding = shape.size / 2, stride = shape.width + 2 * padding;
  const T* dz = dz_frame + (padding * stride + padding) * shape.out;
  for (int64_t r = 0; r < shape.size; ++r) {
    for (int64_t s = 0; s < shape.size; ++s) {
      const T* in = frame + (r * stride + s) * shape.in;
      T* out = dweight + (r * shape.size + s) * shape.in * shape.out;
      int64_t i = 0;
      for (; i + kInputs <= shape.in; i += kInputs) weight_block<V, kVectors, kInputs>(in + i, dz, out + i * shape.out, shape);
      for (; i + 2 <= shape.in; i += 2) weight_block<V, kVectors, 2>(in + i, dz, out + i * shape.out, shape);
      for (; i < shape.in; ++i) weight_block<V, kVectors, 1>(in + i, dz, out + i * shape.out, shape);
    }
  }
}

// Copies an image into a frame through `value(offset, V{})`, which gives the element (or vector) at that offset of the image.
template <class T, class Value>
inline void pad(T* frame, int64_t height, int64_t width, int64_t channels, int64_t size, const Value& value) {
  const int64_t border = size / 2 * channels, row = width * channels;
  std::memset(frame, 0, sizeof(T) * size_t(size / 2 * (row + 2 * border)));
  frame += size / 2 * (row + 2 * border);
  for (int64_t h = 0; h < height; ++h) {
    std::memset(frame, 0, sizeof(T) * size_t(border));
    frame += border;
    value(h * row, frame);
    frame += row;
    std::memset(frame, 0, sizeof(T) * size_t(border));
    frame += border;
  }
  std::memset(frame, 0, sizeof(T) * size_t(size / 2 * (row + 2 * border)));
}

}  // namespace

template <class T>
void pad_relu(const T* x, T* frame, int64_t height, int64_t width, int64_t channels, int64_t size) {
  pad(frame, height, width, channels, size, [&](int64_t offset, T* out) {
    for_channels<T>(width * channels, [&](int64_t i, auto zero) {
      const auto v = load_as<decltype(zero)>(x + offset + i);
      store_as(out + i, v < zero ? zero : v);  // a NaN stays
    });
  });
}

template <class T>
void pad_gradient(const T* dy, const T* z, const T* of_dy, const T* of_z, const T* constant, T* frame, int64_t height,
                  int64_t width, int64_t channels, int64_t size) {
  pad(frame, height, width, channels, size, [&](int64_t offset, T* out) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const V a = load_as<V>(of_dy + c), b = load_as<V>(of_z + c), d = load_as<V>(constant + c);
      for (int64_t w = 0; w < width; ++w) {
        const int64_t at = w * channels + c;
        store_as(out + at, a * load_as<V>(dy + offset + at) + b * load_as<V>(z + offset + at) + d);
      }
    });
  });
}

template <class T>
void convolve(const T* frame, const T* weight, T* y, const ConvolutionShape& shape) {
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= shape.out; o += 2 * kLanes<T>) convolve_channels<Vec<T>, 2>(frame, weight + o, y + o, shape);
  for (; o + kLanes<T> <= shape.out; o += kLanes<T>) convolve_channels<Vec<T>, 1>(frame, weight + o, y + o, shape);
  for (; o < shape.out; ++o) convolve_channels<T, 1>(frame, weight + o, y + o, shape);
}

template <class T>
void convolve_weight_gradient(const T* frame, const T* dz_frame, T* dweight, const ConvolutionShape& shape) {
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= shape.out; o += 2 * kLanes<T>) weight_channels<Vec<T>, 2>(frame, dz_frame + o, dweight + o, shape);
  for (; o + kLanes<T> <= shape.out; o += kLanes<T>) weight_channels<Vec<T>, 1>(frame, dz_frame + o, dweight + o, shape);
  for (; o < shape.out; ++o) weight_channels<T, 1>(frame, dz_frame + o, dweight + o, shape);
}

template <class T>
void add_masked(const T* drelu, const T* x, T* dx, int64_t size) {
  for_channels<T>(size, [&](int64_t i, auto zero) {
    using V = decltype(zero);
    const V gradient = load_as<V>(drelu + i);
    store_as(dx + i, load_as<V>(dx + i) + (load_as<V>(x + i) > zero ? gradient : zero));
  });
}

template <class T>
void fill_convolution(Kernels<T>* table) {
  table->pad_relu = pad_relu<T>;
  table->pad_gradient = pad_gradient<T>;
  table->convolve = convolve<T>;
  table->convolve_weight_gradient = convolve_weight_gradient<T>;
  table->add_masked = add_masked<T>;
}
template void fill_convolution(Kernels<float>*);
template void fill_convolution(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
