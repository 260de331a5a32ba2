// A row of a source as it arrives at a node (../arrival.h), or of its transpose.
#pragma once

#include "../arrival.h"
#include "../image_shape.h"
#include "../pool_math.h"
#include "channels.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
inline T window(int64_t i, int64_t size) {
  return T(pool_window(i, size));
}

// One row of avg_pool_3x3 (mean over the pixels that exist), or of its transpose, into `out` [width, channels]. The count is a
// product of a count of rows and one of columns, so both are separable: sums of three pixels down, and of three of those across
// that stay in registers. Forward divides after each sum, the transpose before. All pixels are divided by 3 columns, and what
// belongs to the two at the ends is corrected.
template <class T, bool kTransposed>
void avg_pool_row(const T* in, int64_t h, const ImageShape& shape, T* out) {
  const int64_t width = shape.width, channels = shape.channels, size = width * channels;
  T factor[3];  // of the rows above, here and below
  for (int64_t r = 0; r < 3; ++r) factor[r] = T(1) / (3 * window<T>(kTransposed ? h + r - 1 : h, shape.height));
  if (h == 0) factor[0] = 0;
  if (h + 1 == shape.height) factor[2] = 0;
  const T* const here = in + h * size;
  const T* const above = h == 0 ? here : here - size;
  const T* const below = h + 1 == shape.height ? here : here + size;
  const T end = T(3) / window<T>(0, width), before = kTransposed ? end : T(1), after = kTransposed ? T(1) : end;
  for_lines<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const auto down = [&](int64_t i) {
      return load_as<V>(above + i) * factor[0] + load_as<V>(here + i) * factor[1] + load_as<V>(below + i) * factor[2];
    };
    const int64_t last = size - channels + c;
    V left = zero, middle = down(c) * before;
    const auto add_right = [&](int64_t i, V right) {
      store_as(out + i, left + middle + right);
      left = middle;
      middle = right;
    };
    for (int64_t i = c; i < last - channels; i += channels) add_right(i, down(i + channels));
    if (width > 1) {
      add_right(last - channels, down(last) * before);
      store_as(out + c, load_as<V>(out + c) * after);
    }
    store_as(out + last, (left + middle) * after);
  });
}

template <class V>
inline V greater_of(V greatest, V value) {
  return is_greater(value, greatest) ? value : greatest;
}

// One row of max_pool_3x3 into `out` [width, channels]: of three pixels down, and of three of those across.
template <class T>
void max_pool_row(const T* in, int64_t h, const ImageShape& shape, T* out) {
  const int64_t channels = shape.channels, size = shape.width * channels;
  const T* const here = in + h * size;
  const T* const above = h == 0 ? here : here - size;
  const T* const below = h + 1 == shape.height ? here : here + size;
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const auto down = [&](int64_t i) {
      return greater_of(greater_of(load_as<V>(above + i), load_as<V>(here + i)), load_as<V>(below + i));
    };
    V middle = down(c), left = middle;
    for (int64_t i = c; i < size; i += channels) {
      const V right = i + channels < size ? down(i + channels) : middle;
      store_as(out + i, greater_of(greater_of(left, middle), right));
      left = middle;
      middle = right;
    }
  });
}

// One row of its transpose: dy of each window goes to the pixel of x that was its maximum, found anew. First across, in each of
// the five rows that a window which meets row h can hold, then down the rows of each window: the first maximum of a window lies
// in the first row that has it, so that two separate searches find it.
template <class T>
void max_pool_gradient_row(const T* dy, const T* x, int64_t h, const ImageShape& shape, T* out) {
  constexpr int kHere = 2, kAround = 5;  // row h among those around it
  const int64_t width = shape.width, channels = shape.channels, size = width * channels;
  const auto exists = [&](int r) { return h + r >= kHere && h + r - kHere < shape.height; };
  const auto at = [&](int r, int64_t w) { return (h + r - kHere) * size + w * channels; };
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    // What the windows around column w give to row h, and to which column, counted from w.
    struct Given {
      V gradient, column;
    };
    const auto given = [&](int64_t w) {
      V greatest[kAround], column{};
      for (int r = 0; r < kAround; ++r) {
        if (!exists(r)) continue;
        const int first = w > 0 ? -1 : 0, last = w + 1 < width ? 1 : 0;
        V value = load_as<V>(x + at(r, w + first) + c), place = zero + T(first);
        for (int s = first + 1; s <= last; ++s) {
          const V next = load_as<V>(x + at(r, w + s) + c);
          const auto wins = is_greater(next, value);
          value = wins ? next : value;
          place = wins ? zero + T(s) : place;
        }
        greatest[r] = value;
        if (r == kHere) column = place;
      }
      V gradient = zero;
      for (int window = kHere - 1; window <= kHere + 1; ++window) {
        if (!exists(window)) continue;
        const int first = exists(window - 1) ? window - 1 : window, last = exists(window + 1) ? window + 1 : window;
        V value = greatest[first], row = zero + T(first);
        for (int r = first + 1; r <= last; ++r) {
          const auto wins = is_greater(greatest[r], value);
          value = wins ? greatest[r] : value;
          row = wins ? zero + T(r) : row;
        }
        gradient += row == zero + T(kHere) ? load_as<V>(dy + at(window, w) + c) : zero;
      }
      return Given{gradient, column};
    };
    const auto to = [&](const Given& from, int column) { return from.column == zero + T(column) ? from.gradient : zero; };
    Given left{zero, zero}, middle = given(0);
    for (int64_t w = 0; w < width; ++w) {
      const Given right = w + 1 < width ? given(w + 1) : Given{zero, zero};
      store_as(out + w * channels + c, to(left, 1) + to(middle, 0) + to(right, -1));
      left = middle;
      middle = right;
    }
  });
}

// x: what the operation took; read by the transpose of those whose gradient reads it.
template <bool kTransposed, class T>
void arrive_row(Arrival arrival, const T* from, const T* x, int64_t h, const ImageShape& shape, T* out) {
  if (arrival == Arrival::kAvgPool) avg_pool_row<T, kTransposed>(from, h, shape, out);
  if (arrival == Arrival::kMaxPool)
    kTransposed ? max_pool_gradient_row(from, x, h, shape, out) : max_pool_row(from, h, shape, out);
}

}  // namespace advnas::cpu::ADVNAS_ISA
