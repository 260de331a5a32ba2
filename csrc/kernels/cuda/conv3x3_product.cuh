// Products of a tile of positions with a slice of the output's channels, for conv3x3.cu's kernels forward and to the input.
//
// A warp multiplies 32 positions by the slice, tap by tap; the inner channels come in parts that fit in shared memory. The
// columns of the slice are permuted, so that a lane has neighbouring channels of each of its rows: sums go from registers to
// memory 16 bytes at once.
#pragma once

#include "conv3x3.cuh"

namespace advnas::cuda {
namespace {

inline constexpr int kOfWarp = 32;     // positions
inline constexpr int kPartBytes = 64;  // of the inner channels of one position
inline constexpr int kMostPositions = kBlock, kLeastPositions = 128;
inline constexpr int kEnoughBlocks = 132;  // for smaller tiles to give no more speed
inline constexpr int kMaxBlocks = 512;     // they leave statistics

// inner: channels of what is multiplied.
struct Layout {
  int positions, slice, part, parts, stride;
  int weight, bytes;  // where the weight begins, and all, in bytes
  int tiles;

  template <class T>
  static Layout make(const Conv3x3Shape& s, int inner, int outer, int positions) {
    Layout l{};
    l.positions = positions;
    l.slice = outer % 32 == 0 ? 32 : 16;
    const int most = kPartBytes / int(sizeof(T));
    l.part = inner % most == 0 ? most : 16;
    l.parts = inner / l.part;
    l.stride = l.part + kPadding<T>;
    l.weight = TileRows(positions, s.pitch()).rows * l.stride * int(sizeof(T));
    l.bytes = l.weight + kTaps * l.slice * l.stride * int(sizeof(T));
    l.tiles = ceil_div(s.positions(), positions);
    return l;
  }

  // Small tiles where large ones would leave the GPU idle, or do not fit.
  template <class T>
  static Layout best(const Conv3x3Shape& s, int inner, int outer) {
    const Layout large = make<T>(s, inner, outer, kMostPositions);
    const bool enough = large.tiles * (outer / large.slice) >= kEnoughBlocks && large.bytes <= kMaxShared;
    return enough ? large : make<T>(s, inner, outer, kLeastPositions);
  }

  // Every block has as many tiles as another, or one less.
  int blocks() const { return ceil_div(tiles, ceil_div(tiles, kMaxBlocks)); }
};

// Column n of a slice in the order of the fragments: lane t of four has columns 2t and 2t + 1 of each tile of 8, which are its
// kSlice / 4 channels.
template <int kSlice>
__device__ __forceinline__ int column_of(int channel) {
  constexpr int kOfLane = kSlice / 4;
  return channel % kOfLane / 2 * 8 + channel / kOfLane * 2 + channel % 2;
}

// Sums of two tiles of 16 positions by kSlice channels.
template <int kSlice>
struct Sums {
  static constexpr int kTiles = kSlice / 8, kOfLane = kSlice / 4;
  float at[2][kTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kTiles * 4; ++i) at[i / (kTiles * 4)][i / 4 % kTiles][i % 4] = 0;
  }

  template <class T>
  __device__ __forceinline__ void add(const T* rows, const T* weight, const Layout& l, int pitch) {
    for (int tap = 0; tap < kTaps; ++tap) {
      const T* const left = rows + (int(threadIdx.x) / kWarp * kOfWarp + tap / 3 * pitch + tap % 3) * l.stride;
      const T* const right = weight + tap * kSlice * l.stride;
      for (int k = 0; k < l.part; k += kDepth<T>) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) load_left(a[i], left + i * 16 * l.stride + k, l.stride);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
          uint32_t b[4];
          load_right(b, right + j * 8 * l.stride + k, l.stride);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            multiply<T, 0>(at[i][j], a[i], b);
            multiply<T, 1>(at[i][j + 1], a[i], b);
          }
        }
      }
    }
  }

  // to(pixel, first channel of the slice that the lane has, values) for each pixel that the lane has.
  template <class To>
  __device__ __forceinline__ void give(const Conv3x3Shape& s, int64_t first, const To& to) const {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const int64_t pixel = pixel_of(s, first + int(threadIdx.x) / kWarp * kOfWarp + row * 8 + lane_of() / 4);
      if (pixel < 0) continue;
      float v[kOfLane];
#pragma unroll
      for (int c = 0; c < kOfLane; ++c) v[c] = at[row / 2][c / 2][row % 2 * 2 + c % 2];
      to(pixel, lane_of() % 4 * kOfLane, v);
    }
  }
};

template <class T, int kSize>
__device__ __forceinline__ void store_packs(T* to, const float (&from)[kSize]) {
  constexpr int kPack = kSize < kFullPack<T> ? kSize : kFullPack<T>;
#pragma unroll
  for (int first = 0; first < kSize; first += kPack) {
    float pack[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) pack[i] = from[first + i];
    store(to + first, pack);
  }
}

// All tiles of a block. fill_rows(to, part, first) and fill_weight(to, part) bring a part of the inner channels; leave(sums,
// first) takes the result of the tile whose first position is `first`.
template <class T, int kSlice, class FillRows, class FillWeight, class Leave>
__device__ __forceinline__ void run_tiles(const Conv3x3Shape& s, const Layout& l, const FillRows& fill_rows,
                                          const FillWeight& fill_weight, const Leave& leave) {
  ADVNAS_DYNAMIC_SHARED(memory);
  T* const rows = reinterpret_cast<T*>(memory);
  T* const weight = reinterpret_cast<T*>(memory + l.weight);
  for (int tile = int(blockIdx.x); tile < l.tiles; tile += int(gridDim.x)) {
    const int64_t first = int64_t(tile) * l.positions;
    Sums<kSlice> sums;
    sums.clear();
    for (int part = 0; part < l.parts; ++part) {
      fill_rows(rows, part * l.part, first - s.pitch() - 1);
      if (l.parts > 1 || tile == int(blockIdx.x)) fill_weight(weight, part * l.part);
      __syncthreads();  // rows and weight are complete
      sums.add(rows, weight, l, s.pitch());
      __syncthreads();  // rows and weight are free
    }
    leave(sums, first);
  }
}

}  // namespace
}  // namespace advnas::cuda
