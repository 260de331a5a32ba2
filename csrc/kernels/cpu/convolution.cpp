// Frames, and the direct convolution of any odd size over them: product.h.
#include "../convolution.h"

#include "channels.h"
#include "isa.h"
#include "product.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

// memset is slow to call for a few pixels.
template <class T>
inline void clear(T* out, int64_t size) {
  for_channels<T>(size, [&](int64_t i, auto zero) { store_as(out + i, zero); });
}

// Copies an image into a frame: value(h, out) writes a row of pixels.
template <class T, class Row>
inline void frame_image(T* frame, const ImageShape& shape, int64_t size, const Row& value) {
  const int64_t row = shape.width * shape.channels, frame_row = frame_side(shape.width, size) * shape.channels;
  const int64_t above = size / 2, below = frame_side(shape.height, size) - above - shape.height;
  const int64_t before = size / 2 * shape.channels, between = frame_row - row;  // from the end of a row to the next one's pixels
  clear(frame, above * frame_row + before);
  frame += above * frame_row + before;
  for (int64_t h = 0; h < shape.height; ++h, frame += frame_row) {
    value(h, frame);
    clear(frame + row, between);
  }
  clear(frame, below * frame_row - before);
}

template <class T>
[[gnu::noinline]] void relu_row(const T* x, T* out, int64_t size) {
  for_channels<T>(size, [=](int64_t i, auto zero) {
    const auto v = load_as<decltype(zero)>(x + i);
    store_as(out + i, v < zero ? zero : v);  // a NaN stays
  });
}

// The 2x2 pixels of x that mean pixel (h, w) takes; fewer at an odd border. Calls body(offset of each), returns their number.
template <class Body>
inline int64_t for_window(const ImageShape& x, int64_t h, int64_t w, const Body& body) {
  const int64_t bottom = 2 * h + 2 < x.height ? 2 * h + 2 : x.height, right = 2 * w + 2 < x.width ? 2 * w + 2 : x.width;
  for (int64_t i = 2 * h; i < bottom; ++i) {
    for (int64_t j = 2 * w; j < right; ++j) body((i * x.width + j) * x.channels);
  }
  return (bottom - 2 * h) * (right - 2 * w);
}

template <class T>
void mean_row(const T* x, T* out, const ImageShape& shape, int64_t h) {
  for (int64_t w = 0; w < halved(shape.width); ++w) {
    for_channels<T>(shape.channels, [&](int64_t c, auto zero) {
      auto sum = zero;
      const int64_t count = for_window(shape, h, w, [&](int64_t at) { sum += load_as<decltype(zero)>(x + at + c); });
      store_as(out + w * shape.channels + c, sum * (T(1) / T(count)));
    });
  }
}

template <bool kAdd, class T>
void put_mean_gradient(const T* dp, T* dx, const ImageShape& shape) {
  for (int64_t h = 0; h < halved(shape.height); ++h) {
    for (int64_t w = 0; w < halved(shape.width); ++w, dp += shape.channels) {
      const T share = T(1) / T(for_window(shape, h, w, [](int64_t) {}));
      for_window(shape, h, w, [&](int64_t at) {
        for_channels<T>(shape.channels, [&](int64_t c, auto zero) {
          using V = decltype(zero);
          const V gradient = load_as<V>(dp + c) * share;
          store_as(dx + at + c, kAdd ? load_as<V>(dx + at + c) + gradient : gradient);
        });
      });
    }
  }
}

template <bool kAdd, class T>
void put_gradient(const T* dp, const T* x, T* dx, int64_t size) {
  for_channels<T>(size, [&](int64_t i, auto zero) {
    using V = decltype(zero);
    V gradient = load_as<V>(dp + i);
    if (x != nullptr) gradient = load_as<V>(x + i) > zero ? gradient : zero;
    store_as(dx + i, kAdd ? load_as<V>(dx + i) + gradient : gradient);
  });
}

template <bool kAdd, class T>
void put_input_gradient(const T* dp, const T* x, T* dx, const ImageShape& shape, int64_t images, Prologue prologue) {
  const int64_t size = shape.height * shape.width * shape.channels;
  if (prologue != Prologue::kMean2) return put_gradient<kAdd>(dp, prologue == Prologue::kRelu ? x : nullptr, dx, images * size);
  const ImageShape inner = shape_after_prologue(shape, prologue);
  for (int64_t n = 0; n < images; ++n) {
    put_mean_gradient<kAdd>(dp + n * inner.height * inner.width * inner.channels, dx + n * size, shape);
  }
}

// Frames without a border and with stride 1 are matrices.
inline bool is_matrix(const ConvolutionShape& shape) { return shape.size == 1 && shape.stride == 1; }
inline int64_t pixels(const ConvolutionShape& shape, int64_t images) { return images * shape.height * shape.width; }

// The products of a frame with all taps, for output pixels of the given stride.
inline Walk forward_walk(const ConvolutionShape& shape) {
  const int64_t row = frame_side(shape.width, shape.size) * shape.in;
  return {shape.out_height(),
          shape.out_width(),
          shape.size,
          shape.size,
          shape.in,
          shape.out,
          row,
          shape.stride * shape.in,
          shape.out_width() * shape.out,
          shape.out};
}

}  // namespace

template <class T>
void frame_input(const T* x, T* frames, const ImageShape& shape, int64_t images, Prologue prologue, int64_t size) {
  const ImageShape inner = shape_after_prologue(shape, prologue);
  const int64_t row = shape.width * shape.channels;
  for (int64_t n = 0; n < images; ++n, x += shape.height * row, frames += frame_elements(inner, size)) {
    frame_image(frames, inner, size, [&](int64_t h, T* out) {
      switch (prologue) {
        case Prologue::kNothing:
          std::memcpy(out, x + h * row, sizeof(T) * size_t(row));
          break;
        case Prologue::kRelu:
          relu_row(x + h * row, out, row);
          break;
        case Prologue::kMean2:
          mean_row(x, out, shape, h);
          break;
      }
    });
  }
}

template <class T>
void frame_gradient(const OutputGradient<T>& gradient, T* frames, const ImageShape& shape, int64_t images, int64_t size) {
  // No structured bindings: clang before 16 does not capture them.
  const T *dy = gradient.dy, *z = gradient.z;
  const T *of_dy = gradient.norm.of_dy, *of_z = gradient.norm.of_z, *constant = gradient.norm.constant;
  const int64_t channels = shape.channels, row = shape.width * channels;
  for (int64_t n = 0; n < images; ++n, frames += frame_elements(shape, size)) {
    frame_image(frames, shape, size, [=](int64_t h, T* out) {
      const int64_t offset = (n * shape.height + h) * row;
      for_lines<T>(channels, [=](int64_t c, auto zero) {
        using V = decltype(zero);
        const V a = load_as<V>(of_dy + c), b = load_as<V>(of_z + c), d = load_as<V>(constant + c);
        for (int64_t w = c; w < row; w += channels) {
          store_as(out + w, a * load_as<V>(dy + offset + w) + b * load_as<V>(z + offset + w) + d);
        }
      });
    });
  }
}

template <class T>
void input_gradient(const T* dp, const T* x, T* dx, const ImageShape& shape, int64_t images, Prologue prologue, bool add) {
  add ? put_input_gradient<true>(dp, x, dx, shape, images, prologue)
      : put_input_gradient<false>(dp, x, dx, shape, images, prologue);
}

template <class T>
void convolve(const T* frames, const T* weight, T* z, const ConvolutionShape& shape, int64_t images) {
  if (is_matrix(shape)) return product(frames, weight, z, matrix_walk(pixels(shape, images), shape.in, shape.out));
  const Walk walk = forward_walk(shape);
  for (int64_t n = 0; n < images; ++n) {
    product(frames + n * frame_elements(shape.input(), shape.size), weight, z + n * walk.rows * walk.out_row, walk,
            shape.stride * walk.row);
  }
}

template <class T>
void convolve_input_gradient(const T* dz_frames, const T* weight, T* dp, const ConvolutionShape& shape, int64_t images) {
  if (is_matrix(shape)) return product(dz_frames, weight, dp, matrix_walk(pixels(shape, images), shape.out, shape.in));
  const int64_t stride = shape.stride, border = shape.size / 2, out_row = shape.width * shape.in;
  const int64_t row = frame_side(shape.out_width(), shape.size) * shape.out, frame = frame_elements(shape.output(), shape.size);
  for (int64_t a = 0; a < stride; ++a) {
    const Phase down = phase_of(a, shape.size, stride);
    for (int64_t b = 0; b < stride; ++b) {
      const Phase across = phase_of(b, shape.size, stride);
      const Walk walk{(shape.height - a + stride - 1) / stride,
                      (shape.width - b + stride - 1) / stride,
                      down.taps,
                      across.taps,
                      shape.out,
                      shape.in,
                      row,
                      shape.out,
                      stride * out_row,
                      stride * shape.in};
      const T* const first = dz_frames + (border + down.offset) * row + (border + across.offset) * shape.out;
      for (int64_t n = 0; n < images; ++n) {
        product(first + n * frame, weight, dp + n * shape.height * out_row + a * out_row + b * shape.in, walk, row);
      }
      weight += down.taps * across.taps * shape.out * shape.in;
    }
  }
}

template <class T>
void convolve_weight_gradient(const T* frames, const T* dz_frames, T* dweight, const ConvolutionShape& shape, int64_t images,
                              bool add) {
  if (is_matrix(shape)) {
    return weight_product(frames, dz_frames, dweight, matrix_walk(pixels(shape, images), shape.in, shape.out), add);
  }
  Walk walk = forward_walk(shape);
  const int64_t border = shape.size / 2;
  walk.out_row = frame_side(shape.out_width(), shape.size) * shape.out;
  for (int64_t n = 0; n < images; ++n) {
    weight_product(frames + n * frame_elements(shape.input(), shape.size),
                   dz_frames + n * frame_elements(shape.output(), shape.size) + border * (walk.out_row + shape.out), dweight,
                   walk, add || n > 0, shape.stride * walk.row);
  }
}

template <class T>
void add_shares(T* sums, int64_t shares, int64_t places, int64_t place, int64_t first, int64_t count) {
  for (int64_t k = 0; k < places; ++k) {
    T* const to = sums + k * place + first;
    for_channels<T>(count, [=](int64_t c, auto zero) {
      using V = decltype(zero);
      V sum = load_as<V>(to + c);
      for (int64_t share = 1; share < shares; ++share) sum += load_as<V>(to + share * places * place + c);
      store_as(to + c, sum);
    });
  }
}

template <class T>
void fill_convolution(Kernels<T>* table) {
  table->frame_input = frame_input<T>;
  table->frame_gradient = frame_gradient<T>;
  table->input_gradient = input_gradient<T>;
  table->convolve = convolve<T>;
  table->convolve_input_gradient = convolve_input_gradient<T>;
  table->convolve_weight_gradient = convolve_weight_gradient<T>;
  table->add_shares = add_shares<T>;
}
template void fill_convolution(Kernels<float>*);
template void fill_convolution(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
