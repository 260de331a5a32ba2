// Weights [out, in, size, size] of any layout to and from the order of the kernels: the results are there when the tasks are
// done.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros_like.h>

#include "../kernels/cpu/isa.h"
#include "buffers.h"
#include "shares.h"

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

// For the input gradient: phase by phase.
template <class T>
void pack_phases(const WeightView<const T>& view, int64_t stride, int64_t first, int64_t last, T* packed) {
  for (int64_t a = 0; a < stride; ++a) {
    for (int64_t b = 0; b < stride; ++b) {
      const Phase down = phase_of(a, view.size, stride), across = phase_of(b, view.size, stride);
      pack_taps(view, down, across, stride, first, last, packed);
      packed += down.taps * across.taps * view.rows * view.columns;
    }
  }
}

// What pack(first row, last row, packed) makes of a weight; of a 3x3 weight also the Winograd form.
template <class T, class Pack>
at::Tensor packed(const at::Tensor& weight, const WeightView<const T>& view, bool winograd, BackgroundTasks& tasks,
                  const Pack& pack) {
  const int64_t place = view.rows * view.columns;
  const at::Tensor taps = empty_buffer({weight.numel()}, weight.scalar_type());
  const at::Tensor u = winograd ? empty_buffer({kWinogradPlaces * weight_place(place)}, weight.scalar_type()) : at::Tensor();
  tasks.add(view.rows, view.columns * (winograd ? kWinogradPlaces : view.size * view.size), [=](int64_t first, int64_t last) {
    T* const to = taps.mutable_data_ptr<T>();
    pack(view, first, last, to);
    if (!winograd) return;
    cpu::kernels<T>().winograd_weight(to, u.mutable_data_ptr<T>(), place, first * view.columns, (last - first) * view.columns);
  });
  return winograd ? u : taps;
}

// For the forward pass: stride -1 through all taps.
template <class T>
at::Tensor pack_forward(const at::Tensor& weight, bool winograd, BackgroundTasks& tasks) {
  return packed<T>(weight, view_forward<T>(weight), winograd, tasks,
                   [](const WeightView<const T>& view, int64_t first, int64_t last, T* to) {
                     const Phase all{view.size, 0, 0};
                     pack_taps(view, all, all, -1, first, last, to);
                   });
}

template <class T>
at::Tensor pack_transposed(const at::Tensor& weight, int64_t stride, bool winograd, BackgroundTasks& tasks) {
  return packed<T>(weight, view_transposed<T>(weight), winograd, tasks,
                   [stride](const WeightView<const T>& view, int64_t first, int64_t last, T* to) {
                     pack_phases(view, stride, first, last, to);
                   });
}

// Adds up the shares [shares, places, in, out] of a weight gradient, and brings it into the shape and layout of the weight.
template <class T>
at::Tensor unpack_gradient(const at::Tensor& sums, int64_t shares, bool winograd, const at::Tensor& weight,
                           BackgroundTasks& tasks) {
  if (shares == 0) return at::zeros_like(weight);
  const at::Tensor gradient = empty_buffer_like(weight);
  const auto view = view_forward<T>(gradient);  // its layout is another one if the weight has gaps
  const int64_t taps = view.size * view.size, places = winograd ? kWinogradPlaces : taps, place = view.rows * view.columns;
  const at::Tensor finished = winograd ? empty_buffer({taps * place}, weight.scalar_type()) : sums;
  // In pieces of many rows: adding goes through each share's rows, and long runs are twice as fast as short ones.
  tasks.add(view.rows, view.columns * places * shares / 8, [=](int64_t first, int64_t last) {
    const auto& kernels = cpu::kernels<T>();
    T* const sum = sums.mutable_data_ptr<T>();
    T* const tap = finished.mutable_data_ptr<T>();
    T* const out = gradient.mutable_data_ptr<T>();
    const int64_t begin = first * view.columns, count = (last - first) * view.columns;
    kernels.add_shares(sum, shares, places, winograd ? weight_place(place) : place, begin, count);
    if (winograd) kernels.winograd_finish(sum, tap, place, begin, count);
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
