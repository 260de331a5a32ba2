// __nv_bfloat16: the upper half of a float, rounded to nearest, ties to even; the arithmetic is that of float.
#pragma once

#include "cuda_fp16.h"

namespace cuda_shim {

CUDA_SHIM_DEVICE uint16_t bfloat16_bits(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
  return uint16_t(round_shift(bits, 16));
}

}  // namespace cuda_shim

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  CUDA_SHIM_DEVICE __nv_bfloat16(float x) : bits(cuda_shim::bfloat16_bits(x)) {}
  CUDA_SHIM_DEVICE operator float() const { return cuda_shim::float_of(uint32_t(bits) << 16); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

CUDA_SHIM_DEVICE __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
CUDA_SHIM_DEVICE __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
CUDA_SHIM_DEVICE float __bfloat162float(__nv_bfloat16 x) { return float(x); }
CUDA_SHIM_DEVICE __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
CUDA_SHIM_DEVICE float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
