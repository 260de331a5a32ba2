// Weights between torch's layout and that of conv3x3.h's 36 places. A vector holds output channels: they are gathered one by one,
// which costs less than a hundredth of the products that a batch does with the result.
#include "../conv3x3.h"
#include "conv3x3_pack.h"
#include "conv3x3_transform.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
void conv3x3_pack(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed) {
  for_panels<T>(out, [&](int64_t first, auto vectors) {
    constexpr int64_t width = decltype(vectors)::value * kLanes<T>;
    T* const panel = weight_panel(packed, in, first);
    for (int64_t v = 0; v < width; v += kLanes<T>) {
      const int64_t left = out - first - v, lanes = left < kLanes<T> ? left : kLanes<T>;
      for (int64_t i = 0; i < in; ++i) {
        const T* const from = weight + (first + v) * strides.out + i * strides.in;
        Vec<T> g[9]{}, half[6][3];
        for (int64_t lane = 0; lane < lanes; ++lane) {
          for (int tap = 0; tap < 9; ++tap) {
            g[tap][lane] = from[lane * strides.out + tap / 3 * strides.row + tap % 3 * strides.column];
          }
        }
        for (int s = 0; s < 3; ++s) {
          weight_line(g[s], g[3 + s], g[6 + s], T(), [&](int r, Vec<T> value) { half[r][s] = value; });
        }
        for (int r = 0; r < 6; ++r) {
          weight_line(half[r][0], half[r][1], half[r][2], T(),
                      [&](int s, Vec<T> value) { store(panel + ((6 * r + s) * in + i) * width + v, value); });
        }
      }
    }
  });
}

// The rotated weight with in and out exchanged is the same array read with other strides.
template <class T>
void conv3x3_pack_transposed(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed) {
  const WeightStrides rotated{strides.in, strides.out, -strides.row, -strides.column};
  conv3x3_pack(weight + 2 * strides.row + 2 * strides.column, rotated, out, in, packed);
}

template <class T>
void conv3x3_unpack_gradient(const T* dpacked, int64_t num, int64_t in, int64_t out, T* dweight, const WeightStrides& strides) {
  const int64_t size = conv3x3_packed_size<T>(in, out);
  for_panels<T>(out, [&](int64_t first, auto vectors) {
    constexpr int64_t width = decltype(vectors)::value * kLanes<T>;
    for (int64_t v = 0; v < width; v += kLanes<T>) {
      const int64_t left = out - first - v, lanes = left < kLanes<T> ? left : kLanes<T>;
      for (int64_t i = 0; i < in; ++i) {
        Vec<T> u[kPlaces]{}, half[3][6];
        for (int64_t k = 0; k < num; ++k) {
          for (int place = 0; place < kPlaces; ++place) {
            u[place] += load(gradient_panel(dpacked + k * size, place, in, out, first) + i * width + v);
          }
        }
        for (int s = 0; s < 6; ++s) {
          weight_gradient_line(u[s], u[6 + s], u[12 + s], u[18 + s], u[24 + s], u[30 + s], T(),
                               [&](int r, Vec<T> value) { half[r][s] = value; });
        }
        T* const to = dweight + (first + v) * strides.out + i * strides.in;
        for (int r = 0; r < 3; ++r) {
          const auto& h = half[r];
          weight_gradient_line(h[0], h[1], h[2], h[3], h[4], h[5], T(), [&](int s, Vec<T> value) {
            for (int64_t lane = 0; lane < lanes; ++lane) {
              to[lane * strides.out + r * strides.row + s * strides.column] = value[lane];
            }
          });
        }
      }
    }
  });
}

#define ADVNAS_INSTANTIATE(T)                                                                  \
  template void conv3x3_pack(const T*, const WeightStrides&, int64_t, int64_t, T*);            \
  template void conv3x3_pack_transposed(const T*, const WeightStrides&, int64_t, int64_t, T*); \
  template void conv3x3_unpack_gradient(const T*, int64_t, int64_t, int64_t, T*, const WeightStrides&);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(double)

}  // namespace advnas::cpu::ADVNAS_ISA
