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

// B^T, a pair of results at a time, those that share their inputs d(0) ... d(5): results 0 and 5, 1 and 2, 3 and 4.
constexpr auto kEnds = [](const auto& d, auto* first, auto* last) {
  *first = d(4) + 4 * d(0) - 5 * d(2);
  *last = d(5) + 4 * d(1) - 5 * d(3);
};
constexpr auto kOnes = [](const auto& d, auto* plus, auto* minus) {
  const auto even = d(4) - 4 * d(2), odd = d(3) - 4 * d(1);
  *plus = even + odd;
  *minus = even - odd;
};
constexpr auto kTwos = [](const auto& d, auto* plus, auto* minus) {
  const auto even = d(4) - d(2), half = d(3) - d(1);
  *plus = even + 2 * half;
  *minus = even - 2 * half;
};

template <class V>
inline void input_1d(const V* x, V* o) {
  const auto d = [x](int i) { return x[i]; };
  kEnds(d, o, o + 5);
  kOnes(d, o + 1, o + 2);
  kTwos(d, o + 3, o + 4);
}

// The same on one row, into places that lie apart.
template <class V, class T>
inline void store_line(const V* x, T* places, int64_t place) {
  V line[6];
  input_1d(x, line);
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) store_as(places + i * place, line[i]);
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

// Tiles of a batch are counted row by row through all its images; a strip is some of them.
struct Strip {
  int64_t first, tiles;
};

// How tiles lie in the images: their number in an image, and from one to the next in elements.
struct Grid {
  int64_t rows, columns, row, column, image;
};
inline Grid grid_of(const ConvolutionShape& shape, int64_t channels, int64_t row, int64_t image) {
  return {tiles_along(shape.height), tiles_along(shape.width), 4 * row, 4 * channels, image};
}

// Calls body(first pixel, its row, its column) for every tile of the strip.
template <class T, class Body>
inline void for_tiles(T* images, const Strip& strip, const Grid& grid, const Body& body) {
  int64_t column = strip.first % grid.columns, row = strip.first / grid.columns % grid.rows;
  T* image = images + strip.first / (grid.columns * grid.rows) * grid.image;
  for (int64_t i = 0; i < strip.tiles; ++i) {
    body(image + row * grid.row + column * grid.column, 4 * row, 4 * column);
    if (++column < grid.columns) continue;
    column = 0;
    if (++row < grid.rows) continue;
    row = 0;
    image += grid.image;
  }
}

// The usual place_stride(): addresses are then constants beside one register. With a number, two registers would not do for all.
struct UsualPlace {
  constexpr operator int64_t() const { return kPlaceStride; }
};
template <class Body>
inline void with_place(const ConvolutionShape& shape, const Body& body) {
  const int64_t place = place_stride(shape);
  place == kPlaceStride ? body(UsualPlace{}) : body(place);
}

// places[36, tiles, channels] = B^T d B of every tile of the strip. Rows of B^T d are made two at a time, those that share their
// inputs: twelve values stay in registers, where the whole 6x6 block would go through the stack.
template <class T, class Place>
void transform(const T* frames, T* places, const Strip& strip, const Grid& grid, int64_t channels, int64_t row, Place place) {
  for_tiles(frames, strip, grid, [&](const T* patch, int64_t, int64_t) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const auto rows = [&](int64_t first, int64_t second, const auto& make) {
        V one[6], two[6];
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) {
          make([&](int64_t y) { return load_as<V>(patch + y * row + x * channels + c); }, one + x, two + x);
        }
        store_line(one, places + c + first * 6 * place, place);
        store_line(two, places + c + second * 6 * place, place);
      };
      rows(0, 5, kEnds);
      rows(1, 2, kOnes);
      rows(3, 4, kTwos);
    });
    places += channels;
  });
}

// places[36, tiles, channels] = A dy A^T of every tile of the strip; `frames` is at its first pixel.
template <class T, class Place>
void transform_gradient(const T* frames, T* places, const Strip& strip, const Grid& grid, int64_t channels, int64_t row,
                        Place place) {
  for_tiles(frames, strip, grid, [&](const T* patch, int64_t, int64_t) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      V half[24];
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        V column[4];
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y) column[y] = load_as<V>(patch + y * row + x * channels + c);
        output_gradient_1d(column, half + x, 4);
      }
#pragma GCC unroll 6
      for (int y = 0; y < 6; ++y) {
        V line[6];
        output_gradient_1d(half + y * 4, line, 1);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) store_as(places + c + (y * 6 + x) * place, line[x]);
      }
    });
    places += channels;
  });
}

// The tile at `corner` = A^T m A, its first `height` x `width` pixels.
template <class T, class Place>
inline void tile_back(const T* places, T* corner, Place place, int64_t row, int64_t channels, int64_t height, int64_t width) {
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V half[24];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
      V column[6];
#pragma GCC unroll 6
      for (int k = 0; k < 6; ++k) column[k] = load_as<V>(places + (k * 6 + x) * place + c);
      output_1d(column, half + x, 6);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      if (k >= height) continue;
      V line[4];
      output_1d(half + k * 6, line, 1);
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        if (x < width) store_as(corner + k * row + x * channels + c, line[x]);
      }
    }
  });
}

// y = A^T m A for every tile of the strip, as far as the images go.
template <class T, class Place>
void transform_back(const T* places, T* y, const Strip& strip, const Grid& grid, const ImageShape& shape, Place place) {
  const int64_t channels = shape.channels, row = shape.width * channels;
  for_tiles(y, strip, grid, [&](T* corner, int64_t top, int64_t left) {
    const int64_t height = shape.height - top, width = shape.width - left;
    if (height >= 4 && width >= 4) {
      tile_back(places, corner, place, row, channels, 4, 4);  // constants: no tests
    } else {
      tile_back(places, corner, place, row, channels, height, width);
    }
    places += channels;
  });
}

// The products of all places. Meanwhile the `size` values of `next` are fetched: they are written tile by tile, which the
// processor does not foresee. Once for both kinds of place: not inline.
template <class T>
[[gnu::noinline]] void products(const T* v, const T* u, T* m, int64_t tiles, int64_t in, int64_t out, int64_t place,
                                const T* next, int64_t size) {
  const Walk walk = matrix_walk(tiles, in, out);
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t k = 0; k < kWinogradPlaces; ++k) {
    for (int64_t i = size * k / kWinogradPlaces; i < size * (k + 1) / kWinogradPlaces; i += kLine) {
      __builtin_prefetch(next + i, 1, 2);
    }
    product(v + k * place, u + k * weight_place(in * out), m + k * place, walk);
  }
}
template <class T>
[[gnu::noinline]] void weight_products(const T* v, const T* dm, T* du, int64_t tiles, int64_t in, int64_t out, int64_t place,
                                       bool add) {
  const Walk walk = matrix_walk(tiles, in, out);
  for (int64_t k = 0; k < kWinogradPlaces; ++k) {
    weight_product(v + k * place, dm + k * place, du + k * weight_place(in * out), walk, add);
  }
}

// Calls body(strip) for every strip of the images.
template <class Body>
inline void for_strips(const ConvolutionShape& shape, int64_t images, const Body& body) {
  const int64_t all = images * tiles_along(shape.height) * tiles_along(shape.width), wanted = strip_tiles(shape);
  for (int64_t first = 0; first < all; first += wanted) body(Strip{first, wanted < all - first ? wanted : all - first});
}

}  // namespace

template <class T>
void winograd_weight(const T* weight, T* u, int64_t taps, int64_t first, int64_t count) {
  const int64_t place = weight_place(taps);
  for_channels<T>(count, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V half[18];
    for (int j = 0; j < 3; ++j) {
      V column[3];
      for (int i = 0; i < 3; ++i) column[i] = load_as<V>(weight + (i * 3 + j) * taps + first + c);
      weight_1d<T>(column, half + j, 3);
    }
    for (int i = 0; i < 6; ++i) {
      V row[6];
      weight_1d<T>(half + i * 3, row, 1);
      for (int j = 0; j < 6; ++j) store_as(u + (i * 6 + j) * place + first + c, row[j]);
    }
  });
}

template <class T>
void winograd_convolve(const T* frames, const T* const* u, T* const* y, int64_t num, const ConvolutionShape& shape,
                       int64_t images, T* workspace) {
  const int64_t row = frame_side(shape.width, 3) * shape.in, y_row = shape.width * shape.out;
  const Grid from = grid_of(shape, shape.in, row, frame_elements(shape.input(), 3));
  const Grid to = grid_of(shape, shape.out, y_row, shape.height * y_row);
  const int64_t size = images * to.image, all = images * to.rows * to.columns;
  with_place(shape, [&](auto place) {
    T* const v = workspace;
    T* const m = workspace + kWinogradPlaces * place;
    for_strips(shape, images, [&](const Strip& strip) {
      transform(frames, v, strip, from, shape.in, row, place);
      const int64_t output = size * strip.first / all, part = size * strip.tiles / all;
      for (int64_t k = 0; k < num; ++k) {
        products(v, u[k], m, strip.tiles, shape.in, shape.out, place, y[k] + output, part);
        transform_back(m, y[k], strip, to, shape.output(), place);
      }
    });
  });
}

template <class T>
void winograd_weight_gradient(const T* frames, const T* const* dz_frames, T* const* du, int64_t num,
                              const ConvolutionShape& shape, int64_t images, bool add, T* workspace) {
  const int64_t side = frame_side(shape.width, 3), row = side * shape.in, dz_row = side * shape.out;
  const Grid from = grid_of(shape, shape.in, row, frame_elements(shape.input(), 3));
  const Grid of_dz = grid_of(shape, shape.out, dz_row, frame_elements(shape.output(), 3));
  with_place(shape, [&](auto place) {
    T* const v = workspace;
    T* const dm = workspace + kWinogradPlaces * place;
    for_strips(shape, images, [&](const Strip& strip) {
      transform(frames, v, strip, from, shape.in, row, place);
      for (int64_t k = 0; k < num; ++k) {
        transform_gradient(dz_frames[k] + dz_row + shape.out, dm, strip, of_dz, shape.out, dz_row, place);
        weight_products(v, dm, du[k], strip.tiles, shape.in, shape.out, place, add || strip.first > 0);
      }
    });
  });
}

template <class T>
void winograd_finish(const T* du, T* dweight, int64_t taps, int64_t first, int64_t count) {
  const int64_t place = weight_place(taps);
  for_channels<T>(count, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V half[18];
    for (int j = 0; j < 6; ++j) {
      V column[6];
      for (int i = 0; i < 6; ++i) column[i] = load_as<V>(du + (i * 6 + j) * place + first + c);
      weight_gradient_1d<T>(column, half + j, 6);
    }
    for (int i = 0; i < 3; ++i) {
      V row[3];
      weight_gradient_1d<T>(half + i * 6, row, 1);
      for (int j = 0; j < 3; ++j) store_as(dweight + (i * 3 + j) * taps + first + c, row[j]);
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
