// Products of 16 x 8 tiles on tensor cores from sm_80 on. An mma takes 32 bytes of the inner dimension: 16 elements of float16 or
// bfloat16, or 8 of float32 that were rounded to TF32. Rows of operands in shared memory begin at multiples of 16 bytes; where
// their stride is an odd multiple of them, no two lanes of an access meet in a bank.
//
// Which elements a lane has (PTX ISA, mma.m16n8k16 and m16n8k8): of the sums rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4)
// and the next.
#pragma once

#include <mma.h>

#include "device.cuh"

namespace advnas::cuda {
namespace {

template <class T>
inline constexpr int kDepth = 32 / sizeof(T);

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
inline constexpr bool kHasFragments = true;
#else
inline constexpr bool kHasFragments = false;
#endif

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t bits_of(float v) { return __float_as_uint(v); }
#else
using cuda_shim::bits_of;
#endif

__device__ __forceinline__ int lane_of() { return int(threadIdx.x) % kWarp; }

// Rounded as the tensor cores take it.
template <class T>
__device__ __forceinline__ float rounded(float v) {
  if constexpr (sizeof(T) == 4 && kHasFragments) {
#ifdef __CUDACC__
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return __uint_as_float(bits);
#else
    return cuda_shim::to_tf32(v);
#endif
  } else {
    return v;
  }
}

// Four 8x8 tiles of 16-bit elements, whose 32 rows are named by the lanes; of each a lane gets two neighbours of row lane / 4, or
// of column lane / 4 of the transposed.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#ifdef __CUDACC__
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
#else
  cuda_shim::ldmatrix<kTransposed>(to, row);
#endif
}

// The left operand: 16 rows, each with the inner dimension contiguous.
template <class T>
__device__ __forceinline__ void load_left(uint32_t (&to)[4], const T* tile, int stride) {
  load_matrices<false>(to, tile + lane_of() % 16 * stride + lane_of() / 16 * kFullPack<T>);
}

// The right operand of two neighbouring tiles of 8 columns, each column with the inner dimension contiguous.
template <class T>
__device__ __forceinline__ void load_right(uint32_t (&to)[4], const T* tile, int stride) {
  load_matrices<false>(to, tile + (lane_of() / 16 * 8 + lane_of() % 8) * stride + lane_of() / 8 % 2 * kFullPack<T>);
}

// The left operand from memory in which the 16 rows are contiguous.
template <class T>
__device__ __forceinline__ void load_left_transposed(uint32_t (&to)[4], const T* tile, int stride) {
  if constexpr (sizeof(T) == 2) {
    load_matrices<true>(to, tile + (lane_of() / 16 * 8 + lane_of() % 8) * stride + lane_of() / 8 % 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = bits_of(tile[(lane_of() % 4 + i / 2 * 4) * stride + lane_of() / 4 + i % 2 * 8]);
  }
}

// The right operand of one tile of 8 contiguous columns, for two steps along the inner dimension.
template <class T>
__device__ __forceinline__ void load_right_transposed(uint32_t (&to)[4], const T* tile, int stride) {
  if constexpr (sizeof(T) == 2) {
    load_matrices<true>(to, tile + lane_of() * stride);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = bits_of(tile[(lane_of() % 4 + i * 4) * stride + lane_of() / 4]);
  }
}

// sum += left right, with the first (0) or the second (1) half of what load_right gave: a tile of 8 columns, or a step.
template <class T, int kWhich>
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[4]) {
  constexpr int kFirst = 2 * kWhich;
#ifndef __CUDACC__
  cuda_shim::mma<T>(sum, left, right[kFirst], right[kFirst + 1]);
#else
  if constexpr (!kHasFragments) {
    __trap();
  } else if constexpr (sizeof(T) == 4) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[kFirst]), "r"(right[kFirst + 1]));
  } else if constexpr (__is_same(T, __half)) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[kFirst]), "r"(right[kFirst + 1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[kFirst]), "r"(right[kFirst + 1]));
  }
#endif
}

}  // namespace
}  // namespace advnas::cuda
