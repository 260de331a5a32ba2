// A source as it arrives at a node (../arrival.h), or its transpose, at a few pixels below each other. Whatever a thread needs of
// a source is loaded at once; the loads of a pooled source overlap in the first-level cache.
#pragma once

#include "../node.h"
#include "../pool_math.h"
#include "device.cuh"

namespace advnas::cuda {
namespace {

// Pixels of a thread: more would share more of the pooled rows, and cost the registers that let another block run.
template <int kPack>
inline constexpr int kRows = kPack > 1 ? 2 : 4;
// Pixels below each other, from (image, row, w) on.
struct Column {
  int64_t at;  // of the first element
  int row, w, rows;
  bool active;
};

template <int kPack>
struct Columns {
  Lanes lanes;
  int strips, num;  // strips of kRows rows in an image; columns in the batch

  __device__ __forceinline__ Column get(const Images& shape, int index) const {
    const int pack = lanes.pack(), w = index % shape.width, rest = index / shape.width;
    const int row = rest % strips * kRows<kPack>, image = rest / strips;
    const bool active = index < num && lanes.lane() < lanes.lanes && pack * kPack < shape.channels;
    const int64_t pixel = (int64_t(image) * shape.height + row) * shape.width + w;
    return {pixel * shape.channels + pack * kPack, row, w, min(kRows<kPack>, shape.height - row), active};
  }
  int blocks() const { return (num + lanes.lanes - 1) / lanes.lanes; }
};

template <int kPack>
Columns<kPack> columns_of(const Images& shape) {
  const int strips = (shape.height + kRows<kPack> - 1) / kRows<kPack>;
  return {lanes_of((shape.channels + kPack - 1) / kPack), strips, shape.batch * strips * shape.width};
}

template <int kPack>
using Values = float[kRows<kPack>][kPack];

template <class T, int kPack>
__device__ __forceinline__ void load_column(const T* from, const Images& shape, const Column& column, Values<kPack>& to) {
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
    if (h < column.rows) {
      load(from + column.at + int64_t(h) * shape.width * shape.channels, to[h]);
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) to[h][i] = 0;
    }
  }
}

// avg_pool_3x3, or its transpose, at the column. A row's sum over columns meets up to three rows of the result.
template <bool kTransposed, class T, int kPack>
__device__ __forceinline__ void avg_pool_column(const T* from, const Images& shape, const Column& column, Values<kPack>& to) {
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] = 0;
  }
#pragma unroll
  for (int r = -1; r <= kRows<kPack>; ++r) {
    const int row = column.row + r;
    if (row < 0 || row >= shape.height) continue;
    float sum[kPack] = {};
#pragma unroll
    for (int side = -1; side <= 1; ++side) {
      const int w = column.w + side;
      if (w < 0 || w >= shape.width) continue;
      float value[kPack];
      load(from + column.at + (int64_t(r) * shape.width + side) * shape.channels, value);
      const float share = kTransposed ? 1.0f / float(pool_window(w, shape.width) * pool_window(row, shape.height)) : 1.0f;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[i] += value[i] * share;
    }
#pragma unroll
    for (int h = 0; h < kRows<kPack>; ++h) {
      if (h < r - 1 || h > r + 1) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) to[h][i] += sum[i];
    }
  }
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
    if constexpr (kTransposed) continue;
    const float share = 1.0f / float(pool_window(column.w, shape.width) * pool_window(column.row + h, shape.height));
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] *= share;
  }
}

// max_pool_3x3 at the column.
template <class T, int kPack>
__device__ __forceinline__ void max_pool_column(const T* from, const Images& shape, const Column& column, Values<kPack>& to) {
  const auto exists = [&](int row, int w) { return row >= 0 && row < shape.height && w >= 0 && w < shape.width; };
  load_column(from, shape, column, to);
#pragma unroll
  for (int r = -1; r <= kRows<kPack>; ++r) {
#pragma unroll
    for (int side = -1; side <= 1; ++side) {
      if (!exists(column.row + r, column.w + side)) continue;
      float value[kPack];
      load(from + column.at + (int64_t(r) * shape.width + side) * shape.channels, value);
#pragma unroll
      for (int h = 0; h < kRows<kPack>; ++h) {
        if (h < r - 1 || r < h - 1) continue;
#pragma unroll
        for (int i = 0; i < kPack; ++i) to[h][i] = is_greater(value[i], to[h][i]) ? value[i] : to[h][i];
      }
    }
  }
}

// Its transpose: dy of each window goes to the pixel of x that was its maximum, found anew. First across, then down the rows of
// the window: the first maximum of a window lies in the first row that has it.
template <class T, int kPack>
__device__ __forceinline__ void max_pool_gradient_column(const T* dy, const T* x, const Images& shape, const Column& column,
                                                         Values<kPack>& to) {
  constexpr int kAround = kRows<kPack> + 4;  // rows of x, from two above on
  const auto exists = [&](int row, int w) { return row >= 0 && row < shape.height && w >= 0 && w < shape.width; };
  const auto row_exists = [&](int r) { return column.row + r >= 2 && column.row + r - 2 < shape.height; };
  const auto at = [&](int r, int across) { return column.at + (int64_t(r - 2) * shape.width + across) * shape.channels; };
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] = 0;
  }
#pragma unroll 1
  for (int side = -1; side <= 1; ++side) {  // of the windows that our column lies in
    if (!exists(column.row, column.w + side)) continue;
    float greatest[kAround][kPack];  // of a row of the window
    unsigned ours[kAround];          // a bit for each channel: whether that is in our column
#pragma unroll
    for (int r = 0; r < kAround; ++r) {
      const int row = column.row + r - 2;
      bool found = false;
      ours[r] = 0;
#pragma unroll
      for (int s = -1; s <= 1; ++s) {
        const int across = side + s;
        if (!exists(row, column.w + across)) continue;
        float value[kPack];
        load(x + at(r, across), value);
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          if (found && !is_greater(value[i], greatest[r][i])) continue;
          greatest[r][i] = value[i];
          ours[r] = across == 0 ? ours[r] | 1u << i : ours[r] & ~(1u << i);
        }
        found = true;
      }
    }
#pragma unroll
    for (int window = 1; window <= kRows<kPack> + 2; ++window) {
      if (!row_exists(window)) continue;
      float gradient[kPack];
      load(dy + at(window, side), gradient);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        int row = window;
        float value = greatest[window][i];
        if (row_exists(window - 1) && !is_greater(value, greatest[window - 1][i])) {
          row = window - 1;
          value = greatest[window - 1][i];
        }
        if (row_exists(window + 1) && is_greater(greatest[window + 1][i], value)) row = window + 1;
#pragma unroll
        for (int h = 0; h < kRows<kPack>; ++h) {
          if (row == h + 2 && (ours[h + 2] >> i & 1) != 0) to[h][i] += gradient[i];
        }
      }
    }
  }
}

// The transpose of the mean of 2x2 pixels at the column `index`.
template <class T, int kPack>
__device__ __forceinline__ void spread_column(const T* from, const Images& shape, const Columns<kPack>& columns, int index,
                                              const Column& column, Values<kPack>& to) {
  const int channel = columns.lanes.pack() * kPack, height = halved(shape.height), width = halved(shape.width);
  const int image = index / shape.width / columns.strips, w = column.w / 2;
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] = 0;
    if (h >= column.rows) continue;
    const int row = (column.row + h) / 2;
    load(from + (int64_t(image * height + row) * width + w) * shape.channels + channel, to[h]);
    const float share = 1.0f / float(halved_window(row, shape.height) * halved_window(w, shape.width));
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] *= share;
  }
}

// The source at the column as it arrives, before its gate; not masked, not spread. x: what the operation took, for the gradients
// that read it. kMaxima: whether it may be a maximum; those take registers that would cost the others a block.
template <bool kTransposed, bool kMaxima, class T, int kPack>
__device__ __forceinline__ void arrive(const NodeSource<T>& source, const T* x, const Images& shape, const Column& column,
                                       Values<kPack>& to) {
  if (source.arrival == Arrival::kAvgPool) return avg_pool_column<kTransposed>(source.data, shape, column, to);
  if constexpr (kMaxima) {
    if (source.arrival == Arrival::kMaxPool) {
      return kTransposed ? max_pool_gradient_column(source.data, x, shape, column, to)
                         : max_pool_column(source.data, shape, column, to);
    }
  }
  load_column(source.data, shape, column, to);
}

}  // namespace
}  // namespace advnas::cuda
