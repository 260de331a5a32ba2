// Matrix products in registers, which the direct and the Winograd convolution share.
//
// A block of some pixels times kVectors vectors of output channels is kept in registers while all taps and input channels are
// added to it. An input value is one broadcast for kVectors products, a weight vector one load for all of them. The weight
// gradient keeps a block of input channels times output channels, over all pixels of an image. Blocks are not inlined: next to
// the caller's values GCC runs out of registers.
#pragma once

#include "channels.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

// Accumulators of a block. Powers of two leave no rest in the usual numbers of tiles and channels, where there are registers.
// kInputSteps: input channels that a step adds; an address in the frame is then made once for several loads.
#if defined(__AVX512F__)
constexpr int pixels_of_block(int vectors) { return vectors == 1 ? 8 : 12; }
constexpr int inputs_of_block(int vectors) { return 16 / vectors; }
constexpr int kInputSteps = 4;
#elif defined(__AVX2__)
constexpr int pixels_of_block(int) { return 6; }
constexpr int inputs_of_block(int) { return 6; }
constexpr int kInputSteps = 1;
#else
constexpr int pixels_of_block(int) { return 4; }
constexpr int inputs_of_block(int) { return 4; }
constexpr int kInputSteps = 1;
#endif

// How a product walks over pixels: `rows` x `columns` of them, `taps_down` x `taps_across` taps at each. Strides in elements.
struct Walk {
  int64_t rows, columns, taps_down, taps_across, in, out;
  int64_t row, pixel;          // in the frame
  int64_t out_row, out_pixel;  // in y, or in the frame of dz
  bool add = false;            // whether y is added to
};

// A matrix product [pixels, in] x [in, out].
inline Walk matrix_walk(int64_t pixels, int64_t in, int64_t out) { return {1, pixels, 1, 1, in, out, 0, in, 0, out}; }

template <int kCount>
struct Count {};

// y[pixel, channel] for kCount pixels in a row and the channels of kVectors values of V (vectors, or one scalar).
template <class V, int kVectors, int kCount, class T>
[[gnu::noinline]] void convolve_block(const T* frame, const T* weight, T* y, const Walk& walk) {
  constexpr int64_t lanes = int64_t(sizeof(V) / sizeof(T));
  V sum[kCount][kVectors] = {};
  for (int64_t r = 0; r < walk.taps_down; ++r) {
    // The taps of a row of the kernel lie side by side in the frame: one loop over [taps_across, in].
    const T* in = frame + r * walk.row;
    const T* w = weight + r * walk.taps_across * walk.in * walk.out;
    const auto add = [&]<int kSteps>(Count<kSteps>) {
      V row[kSteps][kVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) row[i][v] = load_as<V>(w + i * walk.out + v * lanes);
      }
#pragma GCC unroll 16
      for (int p = 0; p < kCount; ++p) {
        const T* const values = in + p * walk.pixel;
#pragma GCC unroll 4
        for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[p][v] += values[i] * row[i][v];
        }
      }
      in += kSteps;
      w += kSteps * walk.out;
    };
    int64_t left = walk.taps_across * walk.in;
    for (; left >= kInputSteps; left -= kInputSteps) add(Count<kInputSteps>{});
    for (; left > 0; --left) add(Count<1>{});
  }
#pragma GCC unroll 16
  for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* const to = y + p * walk.out_pixel + v * lanes;
      store_as(to, walk.add ? load_as<V>(to) + sum[p][v] : sum[p][v]);
    }
  }
}

// Calls body(first, Count<n>) for blocks of n <= kMost. Small blocks leave the multipliers idle, so a rest of 1 or 2 is avoided.
template <int kMost, class Body>
inline void for_blocks(int64_t count, const Body& body) {
  int64_t first = 0;
  for (; count - first == kMost || count - first >= kMost + 3; first += kMost) body(first, Count<kMost>{});
  if constexpr (kMost > 8) {
    for (; count - first >= 8; first += 8) body(first, Count<8>{});
  }
  for (; count - first >= 4; first += 4) body(first, Count<4>{});
  if (count - first == 3) body(first, Count<3>{});
  if (count - first == 2) body(first, Count<2>{});
  if (count - first == 1) body(first, Count<1>{});
}

// step: elements of the frame from one output row to the next.
template <class V, int kVectors, class T>
inline void convolve_channels(const T* frame, const T* weight, T* y, const Walk& walk, int64_t step) {
  for (int64_t h = 0; h < walk.rows; ++h) {
    const T* in = frame + h * step;
    T* out = y + h * walk.out_row;
    for_blocks<pixels_of_block(kVectors)>(walk.columns, [&]<int kCount>(int64_t w, Count<kCount>) {
      convolve_block<V, kVectors, kCount>(in + w * walk.pixel, weight, out + w * walk.out_pixel, walk);
    });
  }
}

// dweight[input, channel] for kCount input channels of one tap; `dz` is at the first pixel.
template <class V, int kVectors, int kCount, class T>
[[gnu::noinline]] void weight_block(const T* frame, const T* dz, T* dweight, const Walk& walk, int64_t step, bool add) {
  constexpr int64_t lanes = int64_t(sizeof(V) / sizeof(T));
  V sum[kCount][kVectors] = {};  // not loaded: GCC keeps only what begins at 0 in registers
  for (int64_t h = 0; h < walk.rows; ++h) {
    const T* in = frame + h * step;
    const T* gradient = dz + h * walk.out_row;
    for (int64_t w = 0; w < walk.columns; ++w, in += walk.pixel, gradient += walk.out_pixel) {
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
    for (int v = 0; v < kVectors; ++v) {
      T* const to = dweight + i * walk.out + v * lanes;
      store_as(to, add ? load_as<V>(to) + sum[i][v] : sum[i][v]);
    }
  }
}

template <class V, int kVectors, class T>
inline void weight_channels(const T* frame, const T* dz, T* dweight, const Walk& walk, int64_t step, bool add) {
  for (int64_t r = 0; r < walk.taps_down; ++r) {
    // The taps of a row of the kernel lie side by side in the frame and in the gradient.
    const T* in = frame + r * walk.row;
    T* out = dweight + r * walk.taps_across * walk.in * walk.out;
    for_blocks<inputs_of_block(kVectors)>(walk.taps_across * walk.in, [&]<int kCount>(int64_t i, Count<kCount>) {
      weight_block<V, kVectors, kCount>(in + i, dz, out + i * walk.out, walk, step, add);
    });
  }
}

// y = the sums of convolution.h over the frame.
template <class T>
inline void product(const T* frame, const T* weight, T* y, const Walk& walk, int64_t step = 0) {
  const int64_t out = walk.out;
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= out; o += 2 * kLanes<T>) convolve_channels<Vec<T>, 2>(frame, weight + o, y + o, walk, step);
  for (; o + kLanes<T> <= out; o += kLanes<T>) convolve_channels<Vec<T>, 1>(frame, weight + o, y + o, walk, step);
  for (; o < out; ++o) convolve_channels<T, 1>(frame, weight + o, y + o, walk, step);
}

// dweight [taps_down, taps_across, in, out] = the sums over frame and gradient, or += with `add`.
template <class T>
inline void weight_product(const T* frame, const T* dz, T* dweight, const Walk& walk, bool add, int64_t step = 0) {
  const int64_t out = walk.out;
  int64_t o = 0;
  for (; o + 2 * kLanes<T> <= out; o += 2 * kLanes<T>) weight_channels<Vec<T>, 2>(frame, dz + o, dweight + o, walk, step, add);
  for (; o + kLanes<T> <= out; o += kLanes<T>) weight_channels<Vec<T>, 1>(frame, dz + o, dweight + o, walk, step, add);
  for (; o < out; ++o) weight_channels<T, 1>(frame, dz + o, dweight + o, walk, step, add);
}

}  // namespace advnas::cpu::ADVNAS_ISA
