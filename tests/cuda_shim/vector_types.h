// The vectors of CUDA, with its alignments.
#pragma once

#define __align__(n) __attribute__((aligned(n)))

#define CUDA_SHIM_VECTORS(T, name, align1, align2, align4)                                          \
  struct alignas(align1) name##1 { T x; };                                                          \
  struct alignas(align2) name##2 { T x, y; };                                                       \
  struct name##3 { T x, y, z; };                                                                    \
  struct alignas(align4) name##4 { T x, y, z, w; };                                                 \
  __attribute__((always_inline)) inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  __attribute__((always_inline)) inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  __attribute__((always_inline)) inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_SHIM_VECTORS(signed char, char, 1, 2, 4)
CUDA_SHIM_VECTORS(unsigned char, uchar, 1, 2, 4)
CUDA_SHIM_VECTORS(short, short, 2, 4, 8)
CUDA_SHIM_VECTORS(unsigned short, ushort, 2, 4, 8)
CUDA_SHIM_VECTORS(int, int, 4, 8, 16)
CUDA_SHIM_VECTORS(unsigned, uint, 4, 8, 16)
CUDA_SHIM_VECTORS(float, float, 4, 8, 16)
CUDA_SHIM_VECTORS(double, double, 8, 16, 16)
#undef CUDA_SHIM_VECTORS
