// Sums over the pixels of an image: in T over runs of kRun pixels, then in double, so that the error does not grow with the
// image.
#pragma once

#include "channels.h"

namespace advnas::cpu::ADVNAS_ISA {

inline constexpr int64_t kRun = 64;
// Sums side by side: one would wait for its own additions.
template <class V>
inline constexpr int kWays = 4;
template <class T>
inline constexpr int kWays<Pair<T>> = 2;

// Calls body(first, last) for every run of the pixels.
template <class Body>
inline void for_runs(int64_t pixels, const Body& body) {
  for (int64_t first = 0; first < pixels; first += kRun) body(first, first + kRun < pixels ? first + kRun : pixels);
}

// Calls add(sums of a way, i) for every i, and adds up the ways.
template <class V, int kSums, class Add>
inline void add_up(int64_t first, int64_t last, V (&sum)[kSums], const Add& add) {
  constexpr int ways = kWays<V>;
  V way[ways][kSums] = {};
  int64_t i = first;
  for (; i + ways <= last; i += ways) {
#pragma GCC unroll 4
    for (int k = 0; k < ways; ++k) add(way[k], i + k);
  }
  for (; i < last; ++i) add(way[0], i);
#pragma GCC unroll 2
  for (int half = ways / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) {
      for (int n = 0; n < kSums; ++n) way[k][n] += way[k + half][n];
    }
  }
  for (int n = 0; n < kSums; ++n) sum[n] = way[0][n];
}

inline void add_to(double* sum, float v) { *sum += v; }
inline void add_to(double* sum, double v) { *sum += v; }
template <class V>
inline void add_to(double* sum, V v) {
  for (uint64_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum[i] += v[i];
}
template <class T>
inline void add_to(double* sum, const Pair<T>& v) {
  add_to(sum, v.first);
  add_to(sum + kLanes<T>, v.second);
}

}  // namespace advnas::cpu::ADVNAS_ISA
