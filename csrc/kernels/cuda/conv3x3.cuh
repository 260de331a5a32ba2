// What the kernels of conv3x3.cu share: how a block uses its shared memory, and how pixels, gradients and weights get there.
//
// A block has tiles of consecutive positions (conv3x3.h). In shared memory a tile has besides its positions those of the rows
// above and below, a pitch and one more on each side, each loaded once through its prologue: tap (r, s) of the output in row m of
// the tile is then row m + r pitch + s. What is multiplied at a position without a pixel is not written.
#pragma once

#include "../conv3x3.h"
#include "fragments.cuh"

namespace advnas::cuda {
namespace {

inline constexpr int kTaps = 9;
// What every GPU gives to a block unasked, but for what norm.cuh takes.
inline constexpr int kMaxShared = 46 << 10;
// Elements that keep the rows of a tile, which are multiples of 32 bytes, in different banks: where 16 bytes of each are read,
// and where the transposed loads of fragments.cuh take single elements.
template <class T>
inline constexpr int kPadding = 16 / sizeof(T);
inline constexpr int kPaddingAcross = 8;

inline int ceil_div(int64_t number, int64_t to) { return int((number + to - 1) / to); }

// A tile of `count` positions, and the rows of shared memory that it takes.
struct TileRows {
  int count, border, rows;

  ADVNAS_HOST_DEVICE TileRows(int count, int pitch) : count(count), border(pitch + 1), rows(count + 2 * border) {}
};

// Where the pixel of a position begins in [batch, height, width], in pixels; -1 where there is none.
__device__ __forceinline__ int64_t pixel_of(const Conv3x3Shape& s, int64_t position) {
  if (position < 0 || position >= s.positions()) return -1;
  const unsigned pitch = unsigned(s.pitch()), line = unsigned(position) / pitch, w = unsigned(position) % pitch;
  const unsigned image = line / unsigned(s.height + 1), h = line % unsigned(s.height + 1);
  return w < unsigned(s.width) && h < unsigned(s.height) ? (int64_t(image) * s.height + h) * s.width + w : -1;
}

// take(i, values) and then leave(i, values) for every i < num, by all threads of the block. Each takes several before it leaves
// the first: loads wait for memory together.
template <int kPack, class Take, class Leave>
__device__ __forceinline__ void for_packs(int num, const Take& take, const Leave& leave) {
  constexpr int kAtOnce = 4;
  for (int first = int(threadIdx.x); first < num; first += kAtOnce * int(blockDim.x)) {
    float v[kAtOnce][kPack] = {};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k * int(blockDim.x) < num) take(first + k * int(blockDim.x), v[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k * int(blockDim.x) < num) leave(first + k * int(blockDim.x), v[k]);
    }
  }
}

template <class T, int kPack>
__device__ __forceinline__ void store_rounded(T* to, float (&v)[kPack]) {
#pragma unroll
  for (float& each : v) each = rounded<T>(each);
  store(to, v);
}

// Rows of [width] channels of the positions from `first` on, zeros where there is no pixel. value(pixel, column, values) makes
// them, 16 bytes at once.
template <class T, class Value>
__device__ __forceinline__ void fill_positions(T* to, int stride, int rows, int width, const Conv3x3Shape& s, int64_t first,
                                               const Value& value) {
  constexpr int kPack = kFullPack<T>;
  const int packs = width / kPack;
  for_packs<kPack>(
      rows * packs,
      [&](int i, float (&v)[kPack]) {
        const int64_t pixel = pixel_of(s, first + i / packs);
        if (pixel >= 0) value(pixel, i % packs * kPack, v);
      },
      [&](int i, float (&v)[kPack]) { store_rounded(to + i / packs * stride + i % packs * kPack, v); });
}

// relu(x) of `in` channels, from `channel` on.
template <class T>
__device__ __forceinline__ auto input_of(const T* x, bool has_relu, int in, int channel) {
  return [=](int64_t pixel, int column, float (&v)[kFullPack<T>]) {
    load(x + pixel * in + channel + column, v);
#pragma unroll
    for (float& each : v) each = has_relu ? relu(each) : each;
  };
}

// The gradient before batch norm of `out` channels, from `channel` on.
template <class T>
__device__ __forceinline__ auto gradient_of(const T* dy, const T* z, const float* gradient, int out, int channel) {
  return [=](int64_t pixel, int column, float (&v)[kFullPack<T>]) {
    const int64_t at = pixel * out + channel + column;
    float of_z[kFullPack<T>];
    load(dy + at, v);
    load(z + at, of_z);
    const float* const row = gradient + channel + column;
#pragma unroll
    for (int i = 0; i < kFullPack<T>; ++i) {
      v[i] = row[kOfDy * out + i] * v[i] + row[kOfZ * out + i] * of_z[i] + row[kConstant * out + i];
    }
  };
}

}  // namespace
}  // namespace advnas::cuda
