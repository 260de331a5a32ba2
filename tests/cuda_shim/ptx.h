// The instructions of PTX that csrc/kernels/cuda/fragments.cuh asks for: ldmatrix, and mma of 16 x 8 tiles. Each is a barrier of
// the whole warp.
#pragma once

#include "cuda_bf16.h"

namespace cuda_shim {

// Rounded to 10 bits of mantissa, to nearest, ties away from zero: cvt.rna.tf32.f32.
CUDA_SHIM_DEVICE float to_tf32(float x) {
  const uint32_t bits = bits_of(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? x : float_of((bits + 0x1000u) & ~0x1fffu);
}

inline void share_addresses(void* const* arguments) {
  const void* of_lane[32];
  for (unsigned lane = 0; lane < 32; ++lane) of_lane[lane] = static_cast<const void**>(arguments[lane])[lane];
  for (unsigned lane = 0; lane < 32; ++lane) std::memcpy(arguments[lane], of_lane, sizeof(of_lane));
}

// Four 8x8 matrices of 16-bit elements; the lane names row lane % 8 of matrix lane / 8.
template <bool kTransposed>
CUDA_SHIM_DEVICE void ldmatrix(uint32_t (&to)[4], const void* row, CUDA_SHIM_HERE) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("misaligned ldmatrix", "a row needs 16 bytes", place);
  const unsigned me = lane();
  const void* rows[32];
  rows[me] = row;
  wait_warp(kFullMask, false, share_addresses, rows, place);
  for (unsigned i = 0; i < 4; ++i) {
    if constexpr (kTransposed) {
      const auto element = [&](unsigned k) {
        return uint32_t(static_cast<const uint16_t*>(rows[8 * i + me % 4 * 2 + k])[me / 4]);
      };
      to[i] = element(0) | element(1) << 16;
    } else {
      to[i] = static_cast<const uint32_t*>(rows[8 * i + me / 4])[me % 4];
    }
  }
}

// Of a register of an operand: element `which` of 16-bit ones, or the only one.
template <class T>
inline float element_of(uint32_t bits, unsigned which) {
  if constexpr (sizeof(T) == 4) {
    return float_of(bits & ~0x1fffu);  // as the tensor cores read it
  } else {
    T value;
    value.bits = uint16_t(bits >> 16 * which);
    return float(value);
  }
}

struct MmaOperands {
  float* sum;
  const uint32_t* left;
  uint32_t right[2];
};

// sum [16, 8] += left [16, depth] right [depth, 8]. The products are exact in float; the sum runs over k in order.
template <class T>
inline void multiply_tiles(void* const* arguments) {
  constexpr unsigned kOfRegister = 4 / sizeof(T), kHalf = 4 * kOfRegister;  // the depth that one register of each lane spans
  float left[16][2 * kHalf], right[2 * kHalf][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MmaOperands& mine = *static_cast<const MmaOperands*>(arguments[lane]);
    for (unsigned e = 0; e < kOfRegister; ++e) {
      const unsigned k = lane % 4 * kOfRegister + e;
      for (unsigned i = 0; i < 4; ++i) left[lane / 4 + i % 2 * 8][k + i / 2 * kHalf] = element_of<T>(mine.left[i], e);
      for (unsigned i = 0; i < 2; ++i) right[k + i * kHalf][lane / 4] = element_of<T>(mine.right[i], e);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MmaOperands& mine = *static_cast<const MmaOperands*>(arguments[lane]);
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (unsigned k = 0; k < 2 * kHalf; ++k) mine.sum[i] += left[row][k] * right[k][column];
    }
  }
}

template <class T>
CUDA_SHIM_DEVICE void mma(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, CUDA_SHIM_HERE) {
  MmaOperands mine{sum, left, {right0, right1}};
  wait_warp(kFullMask, false, multiply_tiles<T>, &mine, place);
}

}  // namespace cuda_shim
