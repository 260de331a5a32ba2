// Where the 36 places of a transformed weight, and of a sum of its gradient, lie. Both are in panels (conv_product.h):
//
//   weight     [panel, place, in, width]   a panel is read by all tiles of a block before the next
//   gradient   [place, panel, in, width]   the tiles of a place are read by all panels before the next
#pragma once

#include "conv3x3_transform.h"
#include "conv_product.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
int64_t conv3x3_packed_size(int64_t in, int64_t out) {
  return kPlaces * in * pad_to_lanes<T>(out);
}

// first: the panel's first output channel.
template <class T>
inline T* weight_panel(T* packed, int64_t in, int64_t first) {
  return packed + kPlaces * in * first;
}
template <class T>
inline T* gradient_panel(T* packed, int64_t place, int64_t in, int64_t out, int64_t first) {
  return packed + in * (place * pad_to_lanes<T>(out) + first);
}

template <class T>
void conv3x3_pack(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed);
template <class T>
void conv3x3_pack_transposed(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed);
template <class T>
void conv3x3_unpack_gradient(const T* dpacked, int64_t num, int64_t in, int64_t out, T* dweight, const WeightStrides& strides);

}  // namespace advnas::cpu::ADVNAS_ISA
