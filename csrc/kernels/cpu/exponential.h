// tanh and sigmoid of a vector, within a few units in the last place of T.
//
//   e^x - 1 = 2^n (e^r - 1) + (2^n - 1),   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2) / 2
//   tanh(x) = E / (E + 2), E = e^2x - 1;   sigmoid(x) = 1 / (2 + (e^-x - 1))
//
// Without the "- 1" tanh would lose its digits near 0. NaN stays NaN.
#pragma once

#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr float kRound = 12582912.f;                                // 1.5 * 2^23: a sum with it has its last digit at 1
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.1219444e-4f;  // n times the first is exact
  static constexpr uint32_t kBias = 127, kMantissa = 23;
  static constexpr float kLeast = -87, kMost = 88;  // 2^n stays a normal number
  static constexpr int kDegree = 7;                 // the next term is below half a unit in the last place
};
template <>
struct Exponential<double> {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr double kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
  static constexpr uint64_t kBias = 1023, kMantissa = 52;
  static constexpr double kLeast = -708, kMost = 709;
  static constexpr int kDegree = 13;
};

template <class T>
inline Vec<T> clamp(Vec<T> x, T least, T most) {
  const Vec<T> low = Vec<T>{} + least, high = Vec<T>{} + most;
  x = x < low ? low : x;
  return x > high ? high : x;
}

// e^x - 1 for x in [kLeast, kMost].
template <class T>
inline Vec<T> exp_minus_one(Vec<T> x) {
  using E = Exponential<T>;
  constexpr double kLog2E = 1.44269504088896340736;
  constexpr double kInverseFactorial[] = {
      1.,         1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,        1. / 5040,
      1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};
  const Vec<T> rounded = x * T(kLog2E) + E::kRound;
  const Vec<T> n = rounded - E::kRound;
  const Vec<T> r = x - n * E::kLn2High - n * E::kLn2Low;
  Vec<T> p = Vec<T>{} + T(kInverseFactorial[E::kDegree - 1]);
  for (int k = E::kDegree - 2; k >= 0; --k) p = p * r + T(kInverseFactorial[k]);
  typename E::Bits bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  bits = (bits + E::kBias) << E::kMantissa;  // n is in the last bits of `rounded`; those before them leave at the top
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof(bits));
  return power * (p * r) + (power - T(1));
}

template <class T>
struct VectorMath {
  static inline Vec<T> sigmoid(Vec<T> x) {
    using E = Exponential<T>;
    return T(1) / (T(2) + exp_minus_one<T>(clamp<T>(-x, E::kLeast, E::kMost)));
  }
  static inline Vec<T> tanh(Vec<T> x) {
    const Vec<T> e = exp_minus_one<T>(clamp<T>(x + x, -40, 40));  // beyond, tanh rounds to 1
    return e / (e + T(2));
  }
};

}  // namespace advnas::cpu::ADVNAS_ISA
