// Loops over channels with one body for whole vectors and for the rest.
#pragma once

#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

// Calls body(c, Vec<T>{}) for every block of lanes, then body(c, T{}) for every channel that is left.
template <class T, class Body>
[[gnu::always_inline]] inline void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, Vec<T>{});
  for (; c < channels; ++c) body(c, T{});
}

template <class V, class T>
inline V load_as(const T* p) {
  if constexpr (requires(V v) { v.second; }) {
    return {load(p), load(p + kLanes<T>)};
  } else {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}
template <class V, class T>
inline void store_as(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// Two vectors side by side.
template <class T>
struct Pair {
  Vec<T> first, second;

  friend Pair operator+(const Pair& x, const Pair& y) { return {x.first + y.first, x.second + y.second}; }
  friend Pair operator-(const Pair& x, const Pair& y) { return {x.first - y.first, x.second - y.second}; }
  friend Pair operator*(const Pair& x, const Pair& y) { return {x.first * y.first, x.second * y.second}; }
  friend Pair operator*(const Pair& x, T y) { return {x.first * y, x.second * y}; }
  Pair& operator+=(const Pair& x) { return *this = *this + x; }
};
template <class T>
inline void store_as(T* p, const Pair<T>& v) {
  store(p, v.first);
  store(p + kLanes<T>, v.second);
}

// for_channels() for bodies that walk along a row of pixels: with pairs, where they fit. A line of the cache is then taken whole,
// when it comes; with AVX2 a second walk for its other half costs a fifth of the time.
template <class T, class Body>
[[gnu::always_inline]] inline void for_lines(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + 2 * kLanes<T> <= channels; c += 2 * kLanes<T>) body(c, Pair<T>{});
  for_channels<T>(channels - c, [&](int64_t rest, auto zero) { body(c + rest, zero); });
}

}  // namespace advnas::cpu::ADVNAS_ISA
