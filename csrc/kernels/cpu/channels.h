// Loops over channels with one body for whole vectors and for the rest.
#pragma once

#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

// Calls body(c, Vec<T>{}) for every block of lanes, then body(c, T{}) for every channel that is left.
template <class T, class Body>
inline void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, Vec<T>{});
  for (; c < channels; ++c) body(c, T{});
}

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class V, class T>
inline void store_as(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

}  // namespace advnas::cpu::ADVNAS_ISA
