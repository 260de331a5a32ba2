// Three stages for a strip of tiles: transform the patches (lanes are channels), 36 matrix products [tiles, in] x [in, out] in
// registers (product.h, as 1x1 convolutions whose pixels are the tiles), transform back. Transforms go column by column into a
// 6x6 block on the stack, then row by row.
#include "../winograd.h"

#include "channels.h"
#include "isa.h"
#include "product.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

// One-dimensional transforms; results lie `step` apart.

template <class V>
inline void input_1d(const V* x, V* o, int step) {
  o[0] = 4 * x[0] - 5 * x[2] + x[4];
  o[step] = x[3] + x[4] - 4 * (x[1] + x[2]);
  o[2 * step] = x[4] - x[3] + 4 * (x[1] - x[2]);
  o[3 * step] = x[4] - x[2] + 2 * (x[3] - x[1]);
  o[4 * step] = x[4] - x[2] - 2 * (x[3] - x[1]);
  o[5 * step] = 4 * x[1] - 5 * x[3] + x[5];
}

template <class V>
inline void output_1d(const V* m, V* y, int step) {
  const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum1 + sum2;
  y[step] = difference1 + 2 * difference2;
  y[2 * step] = sum1 + 4 * sum2;
  y[3 * step] = difference1 + 8 * difference2 + m[5];
}

template <class V>
inline void output_gradient_1d(const V* y, V* m, int step) {
  const V even1 = y[0] + y[2], odd1 = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
  m[0] = y[0];
  m[step] = even1 + odd1;
  m[2 * step] = even1 - odd1;
  m[3 * step] = even2 + odd2;
  m[4 * step] = even2 - odd2;
  m[5 * step] = y[3];
}

template <class T, class V>
inline void weight_1d(const V* g, V* u, int step) {
  const V sum = g[0] + g[2], near = g[0] + 4 * g[2];
  u[0] = g[0] * T(1. / 4);
  u[step] = (sum + g[1]) * T(-1. / 6);
  u[2 * step] = (sum - g[1]) * T(-1. / 6);
  u[3 * step] = (near + 2 * g[1]) * T(1. / 24);
  u[4 * step] = (near - 2 * g[1]) * T(1. / 24);
  u[5 * step] = g[2];
}

template <class T, class V>
inline void weight_gradient_1d(const V* u, V* g, int step) {
  const V sum1 = u[1] + u[2], sum2 = u[3] + u[4];
  g[0] = u[0] * T(1. / 4) - sum1 * T(1. / 6) + sum2 * T(1. / 24);
  g[step] = (u[2] - u[1]) * T(1. / 6) + (u[3] - u[4]) * T(1. / 12);
  g[2 * step] = (sum2 - sum1) * T(1. / 6) + u[5];
}

// places[36, tiles, channels] = B^T d B of every tile of the strip, or with kGradient A dy A^T; `frame` is at the strip's first
// pixel.
template <bool kGradient, class T>
void transform(const T* frame, T* places, int64_t rows, int64_t columns, int64_t channels, int64_t stride) {
  constexpr int side = kGradient ? 4 : 6;
  const int64_t place = rows * columns * channels;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    const T* patch = frame + (tile / columns * stride + tile % columns) * 4 * channels;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      V half[6 * side];
#pragma GCC unroll 6
      for (int j = 0; j < side; ++j) {
        V column[side];
#pragma GCC unroll 6
        for (int i = 0; i < side; ++i) column[i] = load_as<V>(patch + (i * stride + j) * channels + c);
        if constexpr (kGradient) {
          output_gradient_1d(column, half + j, side);
        } else {
          input_1d(column, half + j, side);
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        V row[6];
        if constexpr (kGradient) {
          output_gradient_1d(half + i * side, row, 1);
        } else {
          input_1d(half + i * side, row, 1);
        }
        T* const out = places + i * 6 * place + tile * channels + c;
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) store_as(out + j * place, row[j]);
      }
    });
  }
}

// y = A^T m A for every tile of the strip, as far as the image goes; `y` and `height` are those of the strip.
template <class T>
void transform_back(const T* places, T* y, int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t channels) {
  const int64_t place = rows * columns * channels;
  for (int64_t tile = 0; tile < rows * columns; ++tile) {
    const int64_t top = tile / columns * 4, left = tile % columns * 4;
    const int64_t last_row = height - top < 4 ? height - top : 4, last_column = width - left < 4 ? width - left : 4;
    T* const corner = y + (top * width + left) * channels;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      V half[24];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        V column[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) column[i] = load_as<V>(places + (i * 6 + j) * place + tile * channels + c);
        output_1d(column, half + j, 6);
      }
      for (int64_t i = 0; i < last_row; ++i) {
        V row[4];
        output_1d(half + i * 6, row, 1);
        for (int64_t j = 0; j < last_column; ++j) store_as(corner + (i * width + j) * channels + c, row[j]);
      }
    });
  }
}

// Calls body(first row of tiles, rows) for every strip.
template <class Body>
inline void for_strips(const ConvolutionShape& shape, const Body& body) {
  const int64_t rows = (shape.height + 3) / 4, strip = winograd_rows_of_tiles(shape);
  for (int64_t row = 0; row < rows; row += strip) body(row, strip < rows - row ? strip : rows - row);
}

}  // namespace

template <class T>
void winograd_weight(const T* weight, T* u, int64_t in, int64_t out) {
  const int64_t place = in * out;
  for_channels<T>(place, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V half[18];
    for (int j = 0; j < 3; ++j) {
      V column[3];
      for (int i = 0; i < 3; ++i) column[i] = load_as<V>(weight + (i * 3 + j) * place + c);
      weight_1d<T>(column, half + j, 3);
    }
    for (int i = 0; i < 6; ++i) {
      V row[6];
      weight_1d<T>(half + i * 3, row, 1);
      for (int j = 0; j < 6; ++j) store_as(u + (i * 6 + j) * place + c, row[j]);
    }
  });
}

template <class T>
void winograd_convolve(const T* frame, const T* u, T* y, const ConvolutionShape& shape, T* workspace) {
  const int64_t columns = (shape.width + 3) / 4, stride = frame_side(shape.width, 3);
  for_strips(shape, [&](int64_t row, int64_t rows) {
    const int64_t tiles = rows * columns;
    T* const v = workspace;
    T* const m = workspace + kWinogradPlaces * tiles * shape.in;
    transform<false>(frame + row * 4 * stride * shape.in, v, rows, columns, shape.in, stride);
    const ConvolutionShape matrix{1, tiles, shape.in, shape.out, 1};
    for (int64_t k = 0; k < kWinogradPlaces; ++k) {
      product(v + k * tiles * shape.in, u + k * shape.in * shape.out, m + k * tiles * shape.out, matrix);
    }
    transform_back(m, y + row * 4 * shape.width * shape.out, rows, columns, shape.height - row * 4, shape.width, shape.out);
  });
}

template <class T>
void winograd_weight_gradient(const T* frame, const T* dz_frame, T* du, const ConvolutionShape& shape, T* workspace) {
  const int64_t columns = (shape.width + 3) / 4, stride = frame_side(shape.width, 3);
  const T* const dz = dz_frame + (stride + 1) * shape.out;
  for_strips(shape, [&](int64_t row, int64_t rows) {
    const int64_t tiles = rows * columns;
    T* const v = workspace;
    T* const dm = workspace + kWinogradPlaces * tiles * shape.in;
    transform<false>(frame + row * 4 * stride * shape.in, v, rows, columns, shape.in, stride);
    transform<true>(dz + row * 4 * stride * shape.out, dm, rows, columns, shape.out, stride);
    const ConvolutionShape matrix{1, tiles, shape.in, shape.out, 1};
    for (int64_t k = 0; k < kWinogradPlaces; ++k) {
      weight_product(v + k * tiles * shape.in, dm + k * tiles * shape.out, du + k * shape.in * shape.out, matrix);
    }
  });
}

template <class T>
void winograd_finish(const T* du, T* dweight, int64_t in, int64_t out) {
  const int64_t place = in * out;
  for_channels<T>(place, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V half[18];
    for (int j = 0; j < 6; ++j) {
      V column[6];
      for (int i = 0; i < 6; ++i) column[i] = load_as<V>(du + (i * 6 + j) * place + c);
      weight_gradient_1d<T>(column, half + j, 6);
    }
    for (int i = 0; i < 3; ++i) {
      V row[3];
      weight_gradient_1d<T>(half + i * 6, row, 1);
      for (int j = 0; j < 3; ++j) store_as(dweight + (i * 3 + j) * place + c, row[j]);
    }
  });
}

template <class T>
void fill_winograd(Kernels<T>* table) {
  table->winograd_weight = winograd_weight<T>;
  table->winograd_convolve = winograd_convolve<T>;
  table->winograd_weight_gradient = winograd_weight_gradient<T>;
  table->winograd_finish = winograd_finish<T>;
}
template void fill_winograd(Kernels<float>*);
template void fill_winograd(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
