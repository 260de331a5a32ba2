#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "../../csrc/kernels/cuda/launch.h"
#include "checker_kernels.h"

namespace {

using cuda_shim::Buffer;
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

// ---- Launches

void with_xy(void (*kernel)(const float*, float*)) {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(kBlock, "y");
  ADVNAS_LAUNCH(kernel, 1, kBlock, 0, nullptr)(x.data(), y.data());
}

void with_y(void (*kernel)(float*), unsigned blocks = 1) {
  Buffer<float> y(kBlock * blocks, "y");
  ADVNAS_LAUNCH(kernel, blocks, kBlock, 0, nullptr)(y.data());
  for (float value : y.host()) {
    if (!(value >= 0)) cuda_shim::fail("wrong result", "NaN");
  }
}

void indexed(void (*kernel)(float*, int), int index, unsigned blocks = 1, size_t shared = 0, size_t size = kBlock) {
  Buffer<float> y(size, "y");
  ADVNAS_LAUNCH(kernel, blocks, blocks > 1 ? 1 : kBlock, shared, nullptr)(y.data(), index);
}

void copied(int from, int to, size_t filled = 64) {
  Buffer<float> x(64, "x"), y(64, "y");
  cuda_shim::copy(x.data(), std::vector<float>(filled, 1.0f).data(), filled * 4);
  ADVNAS_LAUNCH(copy_at, 1, 1, 0, nullptr)(x.data(), y.data(), from, to);
}

void vector(void (*kernel)(const float*, float*, int), int from) {
  const Buffer<float> x(std::vector<float>(64, 1.0f), "x");
  Buffer<float> y(4, "y");
  ADVNAS_LAUNCH(kernel, 1, 1, 0, nullptr)(x.data(), y.data(), from);
}

void counted(void (*kernel)(unsigned*)) {
  Buffer<unsigned> n(std::vector<unsigned>(1), "n");
  ADVNAS_LAUNCH(kernel, 1, kBlock, 0, nullptr)(n.data());
  if (n.host()[0] != kBlock) cuda_shim::fail("wrong result", "count");
}

void last(void (*kernel)(float*, unsigned*, float*)) {
  constexpr unsigned kBlocks = 5;
  Buffer<float> partial(kBlocks * kBlock, "partial"), sum(1, "sum");
  Buffer<unsigned> counter(std::vector<unsigned>(1), "counter");
  ADVNAS_LAUNCH(kernel, kBlocks, kBlock, 0, nullptr)(partial.data(), counter.data(), sum.data());
}

template <class T>
void multiplied(int shift, int ld, int lanes = 32, bool synced = true) {
  std::vector<T> values(32 * 24, T(1.0f));
  const Buffer<T> a(values, "a");
  Buffer<float> c(256, "c");
  ADVNAS_LAUNCH(multiply<T>, 1, 32, 0, nullptr)(a.data(), c.data(), shift, ld, lanes, synced);
  for (float value : c.host()) {
    if (value != 16) cuda_shim::fail("wrong result", "product");
  }
}

void table() {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(kBlock, "y");
  ADVNAS_LAUNCH(with_table, 1, kBlock, 0, nullptr)(Table{x.data(), y.data(), {}});
  if (y.host()[5] != 2) cuda_shim::fail("wrong result", "table");
}

void launched(dim3 grid, dim3 block, size_t shared, int allowed = 0) {
  Buffer<float> y(1, "y");
  if (allowed) cudaFuncSetAttribute(same_word, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  ADVNAS_LAUNCH(same_word, grid, block, shared, nullptr)(y.data(), 0);
}

// What the log says of one launch that is known by hand: two blocks of 64 threads read the same 64 floats, write 64 each.
__global__ void broadcast(const float* x, float* y) { y[blockIdx.x * kBlock + threadIdx.x] = x[threadIdx.x]; }

void traffic() {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(2 * kBlock, "y");
  ADVNAS_LAUNCH(broadcast, 2, kBlock, 0, nullptr)(x.data(), y.data());
  const cuda_shim::Launch& launch = cuda_shim::launches().back();
  const auto is = [](const cuda_shim::Traffic& t, uint64_t requested, uint64_t unique, uint64_t sectors) {
    return t.requested == requested && t.unique == unique && t.sectors == sectors;
  };
  if (launch.kernel != "broadcast" || !is(launch.read, 512, 256, 512) || !is(launch.written, 512, 512, 512)) {
    cuda_shim::fail("wrong result", "traffic");
  }
}

}  // namespace

const std::vector<CheckerCase>& checker_cases() {
  static const std::vector<CheckerCase> cases = {
      {"barrier after shared write", nullptr, [] { with_xy(reverse<true>); }},
      {"no barrier after shared write", "race in a block", [] { with_xy(reverse<false>); }},
      {"barrier between rounds", nullptr, [] { with_xy(rounds<true>); }},
      {"no barrier between rounds", "race in a block", [] { with_xy(rounds<false>); }},
      {"syncwarp between lanes", nullptr, [] { with_xy(warp_exchange<true>); }},
      {"no syncwarp between lanes", "race in a block", [] { with_xy(warp_exchange<false>); }},
      {"shuffle instead of syncwarp", "race in a block", [] { with_xy(shuffle_for_barrier); }},
      {"shared all written", nullptr, [] { with_y(half_filled<true>); }},
      {"shared partly written", "uninitialised shared read", [] { with_y(half_filled<false>); }},
      {"shared of the block before", "uninitialised shared read", [] { with_y(left_over, 2); }},
      {"static index inside", nullptr, [] { indexed(static_index, kBlock - 1); }},
      {"static index at the end", "shared out of bounds", [] { indexed(static_index, kBlock); }},
      {"static index before the start", "shared out of bounds", [] { indexed(static_index, -1); }},
      {"dynamic index inside", nullptr, [] { indexed(dynamic_index, kBlock - 1, 1, kBlock * 4); }},
      {"dynamic index at the end", "shared out of bounds", [] { indexed(dynamic_index, kBlock, 1, kBlock * 4); }},
      {"dynamic index before the start", "shared out of bounds", [] { indexed(dynamic_index, -1, 1, kBlock * 4); }},
      {"two halves of a word", nullptr,
       [] {
         Buffer<__half> y(kBlock, "y");
         ADVNAS_LAUNCH(neighbours, 1, kBlock, 0, nullptr)(y.data());
       }},
      {"copy inside", nullptr, [] { copied(63, 63); }},
      {"read at the end", "global out of bounds", [] { copied(64, 0); }},
      {"read before the start", "global out of bounds", [] { copied(-1, 0); }},
      {"write at the end", "global out of bounds", [] { copied(0, 64); }},
      {"write before the start", "global out of bounds", [] { copied(0, -1); }},
      {"read of what the host filled", nullptr, [] { copied(9, 0, 10); }},
      {"read of what nobody wrote", "uninitialised global read", [] { copied(10, 0, 10); }},
      {"read of a freed buffer", "use after free",
       [] {
         float *x, *y;
         cudaMalloc(&x, 64), cudaMalloc(&y, 64);
         cudaFree(x);
         ADVNAS_LAUNCH(copy_at, 1, 1, 0, nullptr)(x, y, 0, 0);
       }},
      {"read of host memory", "host memory",
       [] {
         std::vector<float> host(4, 1.0f);
         Buffer<const float*> x(std::vector<const float*>{host.data()}, "x");
         Buffer<float> y(1, "y");
         ADVNAS_LAUNCH(of_host, 1, 1, 0, nullptr)(x.data(), y.data());
       }},
      {"aligned vector", nullptr, [] { vector(copy_vector, 4); }},
      {"misaligned vector", "misaligned access", [] { vector(copy_vector, 1); }},
      {"aligned ldcg", nullptr, [] { vector(load_vector, 8); }},
      {"misaligned ldcg", "misaligned access", [] { vector(load_vector, 2); }},
      {"one block writes a word", nullptr, [] { indexed(same_word, 1, 3); }},
      {"two blocks write a word", "race between blocks", [] { indexed(same_word, 2, 3); }},
      {"own word", nullptr, [] { indexed(read_other_block, 0, 3); }},
      {"word of another block", "race between blocks", [] { indexed(read_other_block, 1, 3); }},
      {"write of what other blocks read", "race between blocks",
       [] {
         Buffer<float> x(std::vector<float>(4), "x");
         ADVNAS_LAUNCH(overwrite_read, 3, 1, 0, nullptr)(x.data(), x.data(), 2);
       }},
      {"read of what an earlier block will have overwritten", "race between blocks",
       [] {
         Buffer<float> x(std::vector<float>(4), "x");
         ADVNAS_LAUNCH(overwrite_read, 3, 1, 0, nullptr)(x.data(), x.data(), 0);
       }},
      {"atomic count", nullptr, [] { counted(count<true>); }},
      {"count without atomic", "race in a block", [] { counted(count<false>); }},
      {"last block, all fence", nullptr, [] { last(last_block<Fence::kEach, Sync::kBoth>); }},
      {"last block, one fences after the barrier", nullptr, [] { last(last_block<Fence::kOne, Sync::kBoth>); }},
      {"last block, no fence", "race between blocks", [] { last(last_block<Fence::kNone, Sync::kBoth>); }},
      {"last block, fence too late", "race between blocks", [] { last(last_block<Fence::kLate, Sync::kBoth>); }},
      {"last block, no barrier before the atomic", "race between blocks",
       [] { last(last_block<Fence::kEach, Sync::kNotBefore>); }},
      {"last block, no barrier after the atomic", "race between blocks", [] { last(last_block<Fence::kEach, Sync::kNotAfter>); }},
      {"reader with atomic", nullptr, [] { last(read_without_atomic<true>); }},
      {"reader without atomic", "race between blocks", [] { last(read_without_atomic<false>); }},
      {"divergent barrier", "divergent barrier", [] { with_y(divergent); }},
      {"barrier of half a warp", "absent lane", [] { with_y(half_barrier); }},
      {"shuffle of a whole warp", nullptr, [] { indexed(shuffle_some<kAll>, 32); }},
      {"shuffle of half a warp", nullptr, [] { indexed(shuffle_some<0xffffu>, 16); }},
      {"shuffle with an absent lane", "absent lane", [] { indexed(shuffle_some<kAll>, 31); }},
      {"shuffle outside of the mask", "lane outside its mask", [] { indexed(shuffle_some<0xffffu>, 20); }},
      {"shuffles of segments, votes", nullptr, [] { with_y(segments); }},
      {"wmma half", nullptr, [] { multiplied<__half>(0, 16); }},
      {"wmma bfloat16", nullptr, [] { multiplied<__nv_bfloat16>(16, 24); }},
      {"wmma misaligned pointer", "misaligned wmma", [] { multiplied<__half>(8, 16); }},
      {"wmma misaligned rows", "misaligned wmma", [] { multiplied<__half>(0, 20); }},
      {"wmma with absent lanes", "absent lane", [] { multiplied<__half>(0, 16, 31); }},
      {"wmma without syncwarp", "race in a block", [] { multiplied<__half>(0, 16, 32, false); }},
      {"largest launch", nullptr, [] { launched(dim3(1, 1, 3), 1024, 227 << 10, 227 << 10); }},
      {"empty grid", "invalid launch", [] { launched(0, 32, 0); }},
      {"too many threads", "invalid launch", [] { launched(1, 1025, 0); }},
      {"grid too high", "invalid launch", [] { launched(dim3(1, 65536), 32, 0); }},
      {"shared memory not allowed", "invalid launch", [] { launched(1, 32, (48 << 10) + 1); }},
      {"shared memory over the limit", "invalid launch", [] { launched(1, 32, (227 << 10) + 1, (227 << 10) + 1); }},
      {"arguments in a struct, constant data", nullptr, table},
      {"traffic", nullptr, traffic},
  };
  return cases;
}
