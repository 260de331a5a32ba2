// What the convolution kernels share: parts of a vector for channel counts that are no multiple of the lanes, ReLU, and how an
// image is read (rectified, or turned into the gradient before batch norm).
#pragma once

#include "../conv.h"
#include "vec.h"

#define ADVNAS_INLINE __attribute__((always_inline))

namespace advnas::cpu::ADVNAS_ISA {

// Elements of a cache line: buffers start at one, and padded strides are counted in them.
template <class T>
inline constexpr int64_t kLine = 64 / int64_t(sizeof(T));

template <class T>
inline int64_t pad_to_lanes(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
inline T* align(T* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
}

// The first `count` lanes; the others are 0.
template <class T>
inline Vec<T> load_part(const T* p, int64_t count) {
  Vec<T> v{};
  std::memcpy(&v, p, size_t(count) * sizeof(T));
  return v;
}
template <class T>
inline void store_part(T* p, Vec<T> v, int64_t count) {
  std::memcpy(p, &v, size_t(count) * sizeof(T));
}

// max(v, floor); a NaN in v stays. The order of the operands makes this one instruction.
template <class V>
inline V at_least(V v, V floor) {
  return floor > v ? floor : v;
}
// ReLU is a floor of 0, its absence one of minus infinity.
template <class T>
inline Vec<T> relu_floor(bool relu) {
  return Vec<T>{} - (relu ? T(0) : T(__builtin_inf()));
}

// frame[p, c] = max(x[p, c], floor) for `pixels` pixels; the frame has pad_to_lanes(channels) channels.
template <class T>
inline void read_rectified(const T* x, Vec<T> floor, int64_t pixels, int64_t channels, T* frame) {
  if (channels % kLanes<T> == 0) {
    for (int64_t i = 0; i < pixels * channels; i += kLanes<T>) store(frame + i, at_least(load(x + i), floor));
    return;
  }
  for (int64_t p = 0; p < pixels; ++p, x += channels) {
    for (int64_t c = 0; c < channels; c += kLanes<T>, frame += kLanes<T>) {
      const int64_t left = channels - c;
      store(frame, at_least(left < kLanes<T> ? load_part(x + c, left) : load(x + c), floor));
    }
  }
}

// frame[p, c] = dz[p, c] for `pixels` pixels from `pixel` on; the frame has pad_to_lanes(channels) channels.
template <class T>
inline void read_gradient(const ConvGradient<T>& gradient, int64_t pixel, int64_t pixels, int64_t channels, T* frame) {
  const int64_t stride = pad_to_lanes<T>(channels);
  const T* const dy = gradient.dy + pixel * channels;
  const T* const z = gradient.z + pixel * channels;
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) {
    const Vec<T> of_dy = load(gradient.of_dy + c), of_z = load(gradient.of_z + c), constant = load(gradient.constant + c);
    for (int64_t p = 0; p < pixels; ++p) {
      store(frame + p * stride + c, of_dy * load(dy + p * channels + c) + (of_z * load(z + p * channels + c) + constant));
    }
  }
  if (c == channels) return;
  const int64_t left = channels - c;
  const Vec<T> of_dy = load_part(gradient.of_dy + c, left), of_z = load_part(gradient.of_z + c, left);
  const Vec<T> constant = load_part(gradient.constant + c, left);
  for (int64_t p = 0; p < pixels; ++p) {
    const Vec<T> dy_part = load_part(dy + p * channels + c, left), z_part = load_part(z + p * channels + c, left);
    store(frame + p * stride + c, of_dy * dy_part + (of_z * z_part + constant));
  }
}

}  // namespace advnas::cpu::ADVNAS_ISA
