// Frames, and the direct convolution of any odd size over them: product.h.
#include "../convolution.h"

#include "channels.h"
#include "isa.h"
#include "product.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

// Copies an image into a frame: value(offset, out) writes the row of the image that begins at that offset.
template <class T, class Value>
inline void pad(T* frame, int64_t height, int64_t width, int64_t channels, int64_t size, const Value& value) {
  const int64_t row = width * channels, frame_row = frame_side(width, size) * channels;
  const int64_t above = size / 2, below = frame_side(height, size) - above - height;
  const int64_t before = size / 2 * channels, after = frame_row - before - row;
  std::memset(frame, 0, sizeof(T) * size_t(above * frame_row));
  frame += above * frame_row;
  for (int64_t h = 0; h < height; ++h, frame += frame_row) {
    std::memset(frame, 0, sizeof(T) * size_t(before));
    value(h * row, frame + before);
    std::memset(frame + before + row, 0, sizeof(T) * size_t(after));
  }
  std::memset(frame, 0, sizeof(T) * size_t(below * frame_row));
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
  product(frame, weight, y, shape);
}

template <class T>
void convolve_weight_gradient(const T* frame, const T* dz_frame, T* dweight, const ConvolutionShape& shape) {
  weight_product(frame, dz_frame, dweight, shape);
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
