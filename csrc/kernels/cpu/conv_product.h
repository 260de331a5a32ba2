// The matrix product of a block that fits the registers, and the packed layout of its right-hand side.
//
// kRows rows times kColumns vectors of sums stay in registers: a step of the inner sum is kColumns loads and kRows broadcasts for
// kRows * kColumns products, which keeps the multipliers busy. The sums are variables with names, since GCC 12 keeps an array of
// them in memory.
//
// Right-hand sides [inner, columns] are packed in panels of kColumns vectors, the last one maybe narrower, each [inner, width].
#pragma once

#include "conv_lanes.h"

namespace advnas::cpu::ADVNAS_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kRows = 12;  // 32 registers
#else
inline constexpr int kRows = 6;  // 16 registers
#endif
inline constexpr int kColumns = 2;

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body(Constant<count>{}), 1 <= count <= kMost.
template <int kMost, class Body>
inline void with_constant(int64_t count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, body);
  }
  body(Constant<kMost>{});
}

// Splits `size` into as few parts of at most `most` as possible, which differ by at most 1: a short last part would leave the
// multipliers waiting.
struct Split {
  int64_t size, parts;
  Split(int64_t size, int64_t most) : size(size), parts((size + most - 1) / most) {}
  int64_t begin(int64_t part) const { return part * size / parts; }
};

template <class T>
inline constexpr int64_t kPanel = kColumns * kLanes<T>;

// Calls body(first column, Constant<vectors>{}) for every panel.
template <class T, class Body>
inline void for_panels(int64_t columns, const Body& body) {
  int64_t first = 0;
  for (; columns - first > kPanel<T> - kLanes<T>; first += kPanel<T>) body(first, Constant<kColumns>{});
  static_assert(kColumns == 2);
  if (first < columns) body(first, Constant<1>{});
}

#define ADVNAS_FOR_ROWS(row) row(0) row(1) row(2) row(3) row(4) row(5) row(6) row(7) row(8) row(9) row(10) row(11)

// put(m, n, v) gets the sum v[m, n] = begin(m, n) + sum_k a(m, k) b[k, n] for m < kM, and n in the vectors of a panel, kN.
// a(m, k) = kTransposed ? a[k * a_stride + m] : a[m * a_stride + k].
template <int kM, int kN, bool kTransposed, class T, class Begin, class Put>
inline ADVNAS_INLINE void multiply(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t inner, const Begin& begin,
                                   const Put& put) {
  using V = Vec<T>;
#define ADVNAS_BEGIN(m)                         \
  V s##m##_0{}, s##m##_1{};                     \
  if constexpr (m < kM) s##m##_0 = begin(m, 0); \
  if constexpr (m < kM && kN > 1) s##m##_1 = begin(m, 1);
#define ADVNAS_STEP(m)                                    \
  if constexpr (m < kM) {                                 \
    const T value = kTransposed ? a[m] : a[m * a_stride]; \
    s##m##_0 += value * b0;                               \
    if constexpr (kN > 1) s##m##_1 += value * b1;         \
  }
#define ADVNAS_PUT(m)                        \
  if constexpr (m < kM) put(m, 0, s##m##_0); \
  if constexpr (m < kM && kN > 1) put(m, 1, s##m##_1);

  ADVNAS_FOR_ROWS(ADVNAS_BEGIN)
  for (int64_t k = 0; k < inner; ++k) {
    const V b0 = load(b);
    V b1{};
    if constexpr (kN > 1) b1 = load(b + kLanes<T>);
    ADVNAS_FOR_ROWS(ADVNAS_STEP)
    a += kTransposed ? a_stride : 1;
    b += b_stride;
  }
  ADVNAS_FOR_ROWS(ADVNAS_PUT)
#undef ADVNAS_BEGIN
#undef ADVNAS_STEP
#undef ADVNAS_PUT
}

}  // namespace advnas::cpu::ADVNAS_ISA
