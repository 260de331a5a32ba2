// __half: IEEE binary16 in 16 bits of storage, by bit operations; the arithmetic is that of float.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

namespace cuda_shim {

CUDA_SHIM_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
CUDA_SHIM_DEVICE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The upper bits of `value` without the lowest `shift`, rounded to nearest, ties to even.
CUDA_SHIM_DEVICE uint32_t round_shift(uint32_t value, unsigned shift) {
  const uint32_t half = 1u << (shift - 1), rest = value & ((1u << shift) - 1), kept = value >> shift;
  return kept + (rest > half || (rest == half && (kept & 1)));
}

CUDA_SHIM_DEVICE uint16_t half_bits(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;                    // NaN
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  // Normal: the exponent is rebased by 112; a carry of the mantissa goes into it, as it should.
  if (magnitude >= 0x38800000u) return uint16_t(sign | round_shift(magnitude - (112u << 23), 13));
  const unsigned exponent = magnitude >> 23;
  if (exponent < 102) return uint16_t(sign);  // below half of the smallest subnormal, 2^-24
  return uint16_t(sign | round_shift((magnitude & 0x7fffffu) | 0x800000u, 126 - exponent));
}

CUDA_SHIM_DEVICE float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));
}

}  // namespace cuda_shim

struct __half {
  uint16_t bits;

  __half() = default;
  CUDA_SHIM_DEVICE __half(float x) : bits(cuda_shim::half_bits(x)) {}
  CUDA_SHIM_DEVICE operator float() const { return cuda_shim::half_value(bits); }
};

struct alignas(4) __half2 {
  __half x, y;
};

CUDA_SHIM_DEVICE __half __float2half(float x) { return __half(x); }
CUDA_SHIM_DEVICE __half __float2half_rn(float x) { return __half(x); }
CUDA_SHIM_DEVICE float __half2float(__half x) { return float(x); }
CUDA_SHIM_DEVICE __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
CUDA_SHIM_DEVICE float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
