// Weights [out, in, size, size] of any layout to and from the order of the kernels, in parallel over the rows of the result.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include "buffers.h"
#include "kernels/cpu/isa.h"

namespace advnas {

// A weight as [rows, columns] matrices of taps (r, s): rows are the channels that the kernels sum over.
template <class T>
struct WeightView {
  T* data;
  int64_t rows, columns, size;
  int64_t row, column, down, across;  // strides
};

template <class T>
WeightView<const T> view_forward(const at::Tensor& weight) {
  return {weight.const_data_ptr<T>(), weight.size(1),   weight.size(0),   weight.size(2),
          weight.stride(1),           weight.stride(0), weight.stride(2), weight.stride(3)};
}
template <class T>
WeightView<const T> view_transposed(const at::Tensor& weight) {
  return {weight.const_data_ptr<T>(), weight.size(0),   weight.size(1),   weight.size(2),
          weight.stride(0),           weight.stride(1), weight.stride(2), weight.stride(3)};
}

template <class Body>
void for_rows(int64_t rows, int64_t work_a_row, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work_a_row)), body);
}

// [taps_down, taps_across, rows, columns] of the taps down[], across[] of the view; rows first to last.
template <class T>
void pack_taps(const WeightView<const T>& view, const Phase& down, const Phase& across, int64_t stride, int64_t first,
               int64_t last, T* packed) {
  for (int64_t a = 0; a < down.taps; ++a) {
    for (int64_t b = 0; b < across.taps; ++b) {
      const int64_t r = down.last - a * stride, s = across.last - b * stride, columns = view.columns;
      T* to = packed + ((a * across.taps + b) * view.rows + first) * columns;
      for (int64_t i = first; i < last; ++i, to += columns) {
        const T* const from = view.data + i * view.row + r * view.down + s * view.across;
        for (int64_t o = 0; o < columns; ++o) to[o] = from[o * view.column];
      }
    }
  }
}

// For the forward pass: stride -1 through all taps.
template <class T>
at::Tensor pack_forward(const at::Tensor& weight) {
  const auto view = view_forward<T>(weight);
  const at::Tensor packed = empty_buffer({weight.numel()}, weight.scalar_type());
  T* const to = packed.mutable_data_ptr<T>();
  const Phase all{view.size, 0, 0};
  for_rows(view.rows, view.columns * view.size * view.size,
           [&](int64_t first, int64_t last) { pack_taps(view, all, all, -1, first, last, to); });
  return packed;
}

// For the input gradient: phase by phase.
template <class T>
at::Tensor pack_phases(const at::Tensor& weight, int64_t stride) {
  const auto view = view_transposed<T>(weight);
  const at::Tensor packed = empty_buffer({weight.numel()}, weight.scalar_type());
  for_rows(view.rows, view.columns * view.size * view.size, [&](int64_t first, int64_t last) {
    T* to = packed.mutable_data_ptr<T>();
    for (int64_t a = 0; a < stride; ++a) {
      for (int64_t b = 0; b < stride; ++b) {
        const Phase down = phase_of(a, view.size, stride), across = phase_of(b, view.size, stride);
        pack_taps(view, down, across, stride, first, last, to);
        to += down.taps * across.taps * view.rows * view.columns;
      }
    }
  });
  return packed;
}

// The Winograd form [36, rows, columns] of a packed 3x3 weight.
template <class T>
at::Tensor to_winograd(const at::Tensor& packed, int64_t rows, int64_t columns) {
  const at::Tensor u = empty_buffer({kWinogradPlaces * rows * columns}, packed.scalar_type());
  for_rows(rows, columns * kWinogradPlaces, [&](int64_t first, int64_t last) {
    cpu::kernels<T>().winograd_weight(packed.const_data_ptr<T>(), u.mutable_data_ptr<T>(), rows * columns, first * columns,
                                      (last - first) * columns);
  });
  return u;
}

// Adds up the ranges [ranges, places, in, out] of a weight gradient, and brings it into the shape and layout of the weight.
template <class T>
at::Tensor unpack_gradient(const at::Tensor& sums, int64_t ranges, bool winograd, const at::Tensor& weight) {
  const at::Tensor gradient = at::empty_like(weight);
  const auto view = view_forward<T>(weight);
  T* const out = gradient.mutable_data_ptr<T>();
  const int64_t taps = view.size * view.size, places = winograd ? kWinogradPlaces : taps, place = view.rows * view.columns;
  const at::Tensor finished = winograd ? empty_buffer({taps * place}, weight.scalar_type()) : sums;
  T* const sum = sums.mutable_data_ptr<T>();
  for_rows(view.rows, view.columns * places * ranges, [&](int64_t first, int64_t last) {
    const int64_t begin = first * view.columns, count = (last - first) * view.columns;
    for (int64_t range = 1; range < ranges; ++range) {
      for (int64_t k = 0; k < places; ++k) {
        T* const at = sum + k * place + begin;
        const T* const other = at + range * places * place;
        for (int64_t c = 0; c < count; ++c) at[c] += other[c];
      }
    }
    T* const tap = finished.mutable_data_ptr<T>();
    if (winograd) cpu::kernels<T>().winograd_finish(sum, tap, place, begin, count);
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t i = first; i < last; ++i) {
        const T* const from = tap + k * place + i * view.columns;
        T* const to = out + i * view.row + k / view.size * view.down + k % view.size * view.across;
        for (int64_t o = 0; o < view.columns; ++o) to[o * view.column] = from[o];
      }
    }
  });
  return gradient;
}

}  // namespace advnas
