// C += A B for 16x16 tiles in shared memory, by one warp, with float sums: tensor cores where they take the type exactly, which
// is float16 from sm_70 and bfloat16 from sm_80 on; elsewhere, and for float32, multiply-adds. A 1x1 convolution of up to 64
// channels is bound by memory in either.
#pragma once

#include <mma.h>

#include "device.cuh"

namespace advnas::cuda {
namespace {

inline constexpr int kTile = 16;
// Tiles are 16-byte aligned rows; the padding spreads them over the banks. In elements of T.
template <class T>
inline constexpr int kPadding = 16 / sizeof(T);

template <class T>
__host__ __device__ constexpr bool has_tensor_cores() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return sizeof(T) == 2 && !__is_same(T, __nv_bfloat16);
#else
  return sizeof(T) == 2;
#endif
}

// Of a 16x16 tile of sums, a lane has half a row.
template <class T, bool kTensorCores = has_tensor_cores<T>()>
class Tile {
 public:
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) sum_[j] = 0;
  }

  // kTransposed: A is stored as [k, row].
  template <bool kTransposed>
  __device__ __forceinline__ void add(const T* a, int a_stride, const T* b, int b_stride) {
    for (int k = 0; k < kTile; ++k) {
      const float left = float(kTransposed ? a[k * a_stride + row()] : a[row() * a_stride + k]);
#pragma unroll
      for (int j = 0; j < kHalf; ++j) sum_[j] += left * float(b[k * b_stride + column() + j]);
    }
  }

  __device__ __forceinline__ void put(float* c, int stride) const {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) c[row() * stride + column() + j] = sum_[j];
  }

 private:
  static constexpr int kHalf = kTile / 2;
  __device__ __forceinline__ static int row() { return int(threadIdx.x) % kWarp / 2; }
  __device__ __forceinline__ static int column() { return int(threadIdx.x) % 2 * kHalf; }

  float sum_[kHalf];
};

template <class T>
class Tile<T, true> {
 public:
  __device__ __forceinline__ void clear() { nvcuda::wmma::fill_fragment(sum_, 0.0f); }

  template <bool kTransposed>
  __device__ __forceinline__ void add(const T* a, int a_stride, const T* b, int b_stride) {
    namespace wmma = nvcuda::wmma;
    using Order = std::conditional_t<kTransposed, wmma::col_major, wmma::row_major>;
    wmma::fragment<wmma::matrix_a, kTile, kTile, kTile, T, Order> left;
    wmma::fragment<wmma::matrix_b, kTile, kTile, kTile, T, wmma::row_major> right;
    wmma::load_matrix_sync(left, a, a_stride);
    wmma::load_matrix_sync(right, b, b_stride);
    wmma::mma_sync(sum_, left, right, sum_);
  }

  __device__ __forceinline__ void put(float* c, int stride) const {
    nvcuda::wmma::store_matrix_sync(c, sum_, stride, nvcuda::wmma::mem_row_major);
  }

 private:
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kTile, float> sum_;
};

}  // namespace
}  // namespace advnas::cuda
