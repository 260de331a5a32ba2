// Small kernels, most of them wrong in one way unless their template argument or a number makes them right.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "../../csrc/kernels/cuda/launch.h"

namespace {

namespace wmma = nvcuda::wmma;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kBlock = 64;

// ---- Shared memory

template <bool kRight>
__global__ void reverse(const float* x, float* y) {
  __shared__ float tile[kBlock];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];
  if (kRight) __syncthreads();
  y[threadIdx.x] = tile[kBlock - 1 - threadIdx.x];
}

// The second round overwrites what slower threads may still read.
template <bool kRight>
__global__ void rounds(const float* x, float* y) {
  __shared__ float tile[kBlock];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[threadIdx.x] + float(round);
    __syncthreads();
    sum += tile[(threadIdx.x + 33) % kBlock];
    if (kRight) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

template <bool kRight>
__global__ void warp_exchange(const float* x, float* y) {
  __shared__ float tile[kBlock];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];
  if (kRight) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// A shuffle is no memory barrier.
__global__ void shuffle_for_barrier(const float* x, float* y) {
  __shared__ float tile[kBlock];
  tile[threadIdx.x] = x[threadIdx.x];
  const float other = __shfl_xor_sync(kAll, x[threadIdx.x], 2);
  y[threadIdx.x] = tile[threadIdx.x ^ 1] + other;
}

template <bool kRight>
__global__ void half_filled(float* y) {
  __shared__ float tile[kBlock];
  if (kRight || threadIdx.x < 60) tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// What an earlier block left is not there for the next.
__global__ void left_over(float* y) {
  __shared__ float tile[kBlock];
  if (blockIdx.x == 0) tile[threadIdx.x] = 1;
  y[blockIdx.x * kBlock + threadIdx.x] = tile[threadIdx.x];
}

__global__ void static_index(float* y, int index) {
  __shared__ float tile[kBlock];
  __shared__ float next[kBlock];
  tile[threadIdx.x] = next[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) tile[index] = 2;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x] + next[threadIdx.x];
}

__global__ void dynamic_index(float* y, int index) {
  ADVNAS_DYNAMIC_SHARED(shared);
  float* tile = reinterpret_cast<float*>(shared);
  tile[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) tile[index] = 2;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// Two halves of one word by two threads are no race.
__global__ void neighbours(__half* y) {
  __shared__ __half tile[kBlock];
  tile[threadIdx.x] = __half(float(threadIdx.x));
  y[threadIdx.x] = tile[threadIdx.x];
}

// ---- Global memory

__global__ void copy_at(const float* x, float* y, int from, int to) { y[to] = x[from]; }

__global__ void copy_vector(const float* x, float* y, int from) {
  const float4 v = *reinterpret_cast<const float4*>(x + from);
  y[0] = v.x + v.y;
  y[1] = v.z + v.w;
}

__global__ void load_vector(const float* x, float* y, int from) {
  __stcg(reinterpret_cast<float4*>(y), __ldcg(reinterpret_cast<const float4*>(x + from)));
}

__global__ void of_host(const float* const* x, float* y) { y[0] = **x; }

// Every block writes the same word.
__global__ void same_word(float* y, int blocks) {
  if (int(blockIdx.x) < blocks) y[0] = 1;
}

__global__ void read_other_block(float* y, int distance) {
  y[blockIdx.x] = 1;
  if (blockIdx.x > 0 && distance > 0) y[blockIdx.x] = y[int(blockIdx.x) - distance];
}

__global__ void overwrite_read(const float* x, float* y, int block) {
  const float value = x[0];
  if (int(blockIdx.x) == block) {
    y[0] = 1;
  } else {
    y[1 + blockIdx.x] = value;
  }
}

template <bool kRight>
__global__ void count(unsigned* n) {
  if (kRight) {
    atomicAdd(n, 1);
  } else if (threadIdx.x % 32 == 0) {
    *n += 1;
  }
}

// Partial sums; the block that comes last adds them.
enum class Fence { kEach, kOne, kNone, kLate };
enum class Sync { kBoth, kNotBefore, kNotAfter };

template <Fence kFence, Sync kSync>
__global__ void last_block(float* partial, unsigned* counter, float* sum) {
  __shared__ bool is_last;
  partial[blockIdx.x * kBlock + threadIdx.x] = 1;
  if (kFence == Fence::kEach) __threadfence();
  if (kSync != Sync::kNotBefore) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFence == Fence::kOne) __threadfence();
    is_last = atomicAdd(counter, 1) == gridDim.x - 1;
    if (kFence == Fence::kLate) __threadfence();
  }
  if (kSync == Sync::kNotAfter) {
    if (threadIdx.x == 33 && blockIdx.x == gridDim.x - 1) *sum = partial[0];
    return;
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 33) return;
  float total = 0;
  for (unsigned i = 0; i < gridDim.x * kBlock; ++i) total += __ldcg(partial + i);
  *sum = total;
}

template <bool kRight>
__global__ void read_without_atomic(float* partial, unsigned* counter, float* sum) {
  partial[blockIdx.x * kBlock + threadIdx.x] = 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0 && (kRight || blockIdx.x != gridDim.x - 1)) atomicAdd(counter, 1);
  __syncthreads();
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *sum = partial[0];
}

// ---- Barriers and lanes

__global__ void divergent(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void half_barrier(float* y) {
  if (threadIdx.x < 16) __syncwarp();
  if (threadIdx.x >= 16) __syncthreads();
  y[threadIdx.x] = 1;
}

template <unsigned kMask>
__global__ void shuffle_some(float* y, int lanes) {
  float v = float(threadIdx.x);
  if (int(threadIdx.x % 32) < lanes) v = __shfl_down_sync(kMask, v, 1);
  y[threadIdx.x] = v;
}

__global__ void segments(float* y) {
  float v = float(threadIdx.x);
  for (int offset = 4; offset > 0; offset /= 2) v += __shfl_xor_sync(kAll, v, offset, 8);
  const float up = __shfl_up_sync(kAll, v, 1, 8), first = __shfl_sync(kAll, v, 0, 8);
  const bool right = up == v && first == v && __syncthreads_count(threadIdx.x < 5) == 5 &&
                     __any_sync(kAll, threadIdx.x == 0) == (threadIdx.x < 32);
  const float expected = 8 * float(threadIdx.x / 8 * 8) + 28;
  if (right && v == expected) y[threadIdx.x] = v;  // else the check of the result meets NaN
}

template <class T>
__global__ void multiply(const T* a, float* c, int shift, int ld, int lanes, bool synced) {
  __shared__ __align__(32) T tile[32 * 24];
  __shared__ __align__(32) float out[256];
  for (int i = threadIdx.x; i < 32 * 24; i += 32) tile[i] = a[i];
  if (synced) __syncwarp();
  if (int(threadIdx.x) >= lanes) return;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  wmma::load_matrix_sync(fa, tile + shift, unsigned(ld));
  wmma::load_matrix_sync(fb, tile, 16);
  wmma::mma_sync(sum, fa, fb, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
  __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) c[i] = out[i];
}

struct Table {
  const float* x;
  float* y;
  float factors[100];
};

__constant__ float kOffsets[4] = {1, 2, 3, 4};

__global__ void __launch_bounds__(kBlock) with_table(const __grid_constant__ Table table) {
  table.y[threadIdx.x] = table.x[threadIdx.x] * table.factors[threadIdx.x] + kOffsets[threadIdx.x % 4];
}

__global__ void broadcast(const float* x, float* y) { y[blockIdx.x * kBlock + threadIdx.x] = x[threadIdx.x]; }

}  // namespace
