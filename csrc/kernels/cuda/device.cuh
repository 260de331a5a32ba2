// What the kernels share: 16-byte packs, how threads lie over channels and pixels, sums of a block, and the last block of a
// launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../channels_last.h"
#include "launch.h"

namespace advnas::cuda {
namespace {  // of each kernel file its own: shared memory is not shared between them

inline constexpr int kBlock = 256;
inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// kPack elements that one load or store moves: 16 bytes, or one element where the channels do not divide.
template <class T>
inline constexpr int kFullPack = 16 / sizeof(T);

template <class T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T at[kPack];
};

template <int kPack, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[kPack]) {
  const Pack<T, kPack> pack = *reinterpret_cast<const Pack<T, kPack>*>(from);
#pragma unroll
  for (int i = 0; i < kPack; ++i) to[i] = float(pack.at[i]);
}

template <int kPack, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[kPack]) {
  Pack<T, kPack> pack;
#pragma unroll
  for (int i = 0; i < kPack; ++i) pack.at[i] = T(from[i]);
  *reinterpret_cast<Pack<T, kPack>*>(to) = pack;
}

// Whether 16 bytes may be loaded at once: a dense tensor can begin anywhere in its memory.
template <class... Pointers>
inline bool are_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Where a thread lies: the packs of a pixel's channels are `slabs` slabs of `slab` packs, one for each blockIdx.y; in a block the
// pack runs fastest, so that neighbours read neighbouring addresses, and `lanes` pixels or columns lie beside each other. A block
// is whole warps; the threads beyond its lanes only take part in barriers.
struct Lanes {
  int slab, slabs, lanes;

  __device__ __forceinline__ int pack() const { return int(blockIdx.y) * slab + int(threadIdx.x) % slab; }
  __device__ __forceinline__ int lane() const { return int(threadIdx.x) / slab; }
  int block() const { return (slab * lanes + kWarp - 1) / kWarp * kWarp; }
};

inline Lanes lanes_of(int packs) {
  const int slabs = (packs + kBlock - 1) / kBlock;
  const int slab = (packs + slabs - 1) / slabs;
  return {slab, slabs, kBlock / slab};
}

__device__ __forceinline__ float relu(float v) { return v < 0 ? 0 : v; }  // a NaN stays

// The sum over the block, in thread 0.
__device__ inline float sum_block(float value) {
  __shared__ float of_warp[kBlock / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kAllLanes, value, offset);
  __syncthreads();  // of_warp may still be read from the call before
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();  // of_warp is complete
  value = 0;
  if (threadIdx.x == 0) {
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) value += of_warp[warp];
  }
  return value;
}

// Whether this is the block that ends last of so many that count themselves in `counter`: it sees what all others wrote before,
// in `workspace`s, and can finish a sum in a fixed order without another launch. counter: 0 before the launch, and after it.
__device__ inline bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // what this thread wrote is seen before its block is counted
  __syncthreads();  // all threads of the block have written
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();  // `last` is known
  if (last) __threadfence();
  return last;
}

__device__ inline bool is_last_block(unsigned* counter) { return is_last_block(counter, gridDim.x * gridDim.y); }

// The sum of `num` values `stride` apart that other blocks of this launch have left, in a fixed order.
__device__ inline float sum_column(const float* from, int stride, int num) {
  constexpr int kAtOnce = 8;  // loads in flight
  float sum[kAtOnce] = {};
  for (int first = 0; first < num; first += kAtOnce) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < num) sum[i] += __ldcg(from + int64_t(first + i) * stride);
    }
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// How the threads of a block share `width` columns of values that blocks have left: each thread has one column, and of the blocks
// every parts-th. All of them read at once: a thread alone would wait for memory dozens of times.
struct Shares {
  int width, column, part, parts;

  __device__ __forceinline__ explicit Shares(int width)
      : width(width), column(int(threadIdx.x) % width), part(int(threadIdx.x) / width), parts(int(blockDim.x) / width) {}

  __device__ __forceinline__ bool active() const { return part < parts; }

  // The sum over the threads of a column, in a fixed order; memory: a float for each thread.
  __device__ __forceinline__ float add(float value, float* memory) const {
    __syncthreads();  // memory is free
    memory[threadIdx.x] = value;
    __syncthreads();  // the values of the parts are complete
    float sum = 0;
    for (int p = 0; p < parts; ++p) sum += memory[p * width + column];
    return sum;
  }

  // As sum_column, of this thread's column.
  __device__ __forceinline__ float add_column(const float* from, int stride, int num, float* memory) const {
    const int mine = active() && part < num ? (num - part + parts - 1) / parts : 0;
    return add(sum_column(from + int64_t(part) * stride, parts * stride, mine), memory);
  }
};

}  // namespace
}  // namespace advnas::cuda
