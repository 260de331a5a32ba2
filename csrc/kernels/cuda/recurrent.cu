// Bound by memory: 16-byte loads and stores, each pre-activation touched once, the advantages summed on the way.
// Backward, each source of the node has its own blocks, so that no two threads write to one place and the sums of a thread stay
// in registers. The sums have two stages and a fixed order (partial sums of the blocks, then one block over them): no float
// atomics, so the same input gives the same bits.
#include "../recurrent_math.h"
#include "device.cuh"

namespace advnas::cuda {
namespace {

// Of a source: dg of each operation, then d constant: of the source, or where gates multiply whole edges of the first one alone.
constexpr int kSums = kNumRecurrentOps + 1;

struct DeviceMath {
  ADVNAS_HOST_DEVICE static float sigmoid(float x) { return 1 / (1 + expf(-x)); }
  ADVNAS_HOST_DEVICE static float tanh(float x) { return tanhf(x); }
};

template <class T>
struct ForwardArgs {
  RecurrentNode<float> node;
  const T *states, *pre;
  T* out;
};

template <class T>
struct BackwardArgs {
  RecurrentNode<float> node;
  const T *states, *pre, *dout;
  T *dstates, *dpre;
  float* partial;  // [sources, kSums, blocks]; null if not wanted
};

struct SumArgs {
  RecurrentNode<float> node;
  const float* partial;
  int blocks;
  double* sums;
};

template <class T, int kSize>
__global__ void forward_kernel(const __grid_constant__ ForwardArgs<T> args) {
  const RecurrentNode<float>& node = args.node;
  const int64_t units = node.units, packs_in_row = units / kSize, packs = node.batch * packs_in_row;
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < packs; i += stride) {
    const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
    float sum[kSize] = {};
    for (int k = 0; k < node.num_sources; ++k) {
      const T* const z = args.pre + row * node.pre_stride + node.source[k].column + unit;
      const uint32_t picked = node.source[k].picked;
      float s[kSize], c[kSize], u[kSize] = {};
      load(args.states + node.source[k].state * node.state_stride + row * units + unit, s);
      load(z, c);
      if (picked != 0) load(z + units, u);
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const float in = u[j];
        float y = 0;
#pragma unroll
        for (int op = 0; op < kNumRecurrentOps; ++op) {
          if ((picked >> op & 1) != 0) y += node.source[k].gate[op] * recurrent_activation<DeviceMath>(op, in);
        }
        sum[j] += recurrent_highway(node.source[k].carry * s[j], DeviceMath::sigmoid(c[j]), y);
      }
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j) sum[j] *= node.scale;
    store(args.out + row * units + unit, sum);
  }
}

// partial[n * blocks + block] = sum of value[n] over the block.
__device__ void sum_block(float (&value)[kSums], float (&of_warp)[kSums][kBlock / kWarp], float* partial, int blocks, int block) {
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value[n] += __shfl_down_sync(kAllLanes, value[n], offset);
    if (threadIdx.x % kWarp == 0) of_warp[n][threadIdx.x / kWarp] = value[n];
  }
  __syncthreads();  // of_warp is complete
  if (threadIdx.x < kSums) {
    float sum = 0;
    for (int warp = 0; warp < kBlock / kWarp; ++warp) sum += of_warp[threadIdx.x][warp];
    partial[threadIdx.x * blocks + block] = sum;
  }
}

// blockIdx.y: the source; the blocks of the first one are there even if the node has no source.
template <class T, int kSize>
__global__ void backward_kernel(const __grid_constant__ BackwardArgs<T> args) {
  __shared__ float of_warp[kSums][kBlock / kWarp];
  const RecurrentNode<float>& node = args.node;
  const int k = blockIdx.y;
  const bool is_source = k < node.num_sources;
  const uint32_t picked = is_source ? node.source[k].picked : 0;
  const int64_t state = is_source ? node.source[k].state : 0, column = is_source ? node.source[k].column : 0;
  const int64_t units = node.units, packs_in_row = units / kSize, packs = node.batch * packs_in_row;
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  float sums[kSums] = {};
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < packs; i += stride) {
    const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
    float d[kSize];
    load(args.dout + row * units + unit, d);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      d[j] *= node.scale;
      if (node.whole && k == 0) sums[kNumRecurrentOps] += d[j];
    }
    if (!is_source) continue;
    const int64_t z = row * node.pre_stride + column + unit, place = (state * node.batch + row) * units + unit;
    float s[kSize], c[kSize], u[kSize] = {}, ds[kSize];
    load(args.states + state * node.state_stride + row * units + unit, s);
    load(args.pre + z, c);
    if (picked != 0) load(args.pre + z + units, u);
    load(args.dstates + place, ds);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const float from = s[j], in = u[j], carry = node.source[k].carry;
      const RecurrentGradient<float> gradient{d[j], DeviceMath::sigmoid(c[j])};
      float y = 0, slope = 0;
#pragma unroll
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if ((picked >> op & 1) == 0) continue;
        const float f = recurrent_activation<DeviceMath>(op, in);
        y += node.source[k].gate[op] * f;
        slope += node.source[k].gate[op] * recurrent_slope(op, f);
        sums[op] += gradient.d * recurrent_output(node.whole, from, gradient.c, f);
      }
      if (!node.whole) sums[kNumRecurrentOps] += gradient.d * gradient.c;
      c[j] = gradient.dc(carry * from, y);
      u[j] = gradient.du(slope);
      ds[j] = ds[j] + gradient.dstate(carry);
    }
    store(args.dpre + z, c);
    if (picked != 0) store(args.dpre + z + units, u);
    store(args.dstates + place, ds);
  }
  if (args.partial == nullptr) return;
  sum_block(sums, of_warp, args.partial + int64_t(k) * kSums * gridDim.x, gridDim.x, blockIdx.x);
}

// A block for each source.
__global__ void sum_partials_kernel(const __grid_constant__ SumArgs args) {
  __shared__ float of_warp[kSums][kBlock / kWarp];
  __shared__ float total[kSums];
  const RecurrentNode<float>& node = args.node;
  const int k = blockIdx.x;
  float value[kSums] = {};
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    for (int i = threadIdx.x; i < args.blocks; i += kBlock) value[n] += args.partial[(int64_t(k) * kSums + n) * args.blocks + i];
  }
  sum_block(value, of_warp, total, 1, 0);
  __syncthreads();  // total is complete
  const int n = threadIdx.x;
  if (n < kNumRecurrentOps && k < node.num_sources && (node.source[k].picked >> n & 1) != 0) {
    args.sums[node.source[k].place[n]] += total[n];
  }
  const float constant = total[kNumRecurrentOps];
  if (!node.whole && n == 0 && k < node.num_sources) args.sums[node.source[k].constant] += constant;
  if (node.whole && n < node.num_edges && k == 0) args.sums[node.constant + n] += constant;
}

int blocks_for(int64_t packs) {
  const int64_t blocks = (packs + kBlock - 1) / kBlock;
  return int(blocks < kRecurrentBlocks ? blocks : kRecurrentBlocks);
}

template <class T, int kSize>
void launch_backward(const BackwardArgs<T>& args, double* sums, void* stream) {
  const int blocks = blocks_for(args.node.batch * args.node.units / kSize);
  const int rows = args.node.num_sources > 0 ? args.node.num_sources : 1;
  ADVNAS_LAUNCH((backward_kernel<T, kSize>), dim3(blocks, rows), kBlock, 0, stream)(args);
  if (sums == nullptr) return;
  ADVNAS_LAUNCH(sum_partials_kernel, rows, kBlock, 0, stream)(SumArgs{args.node, args.partial, blocks, sums});
}

}  // namespace

template <class T>
void recurrent_forward(const RecurrentNode<float>& node, const T* states, const T* pre, T* out, void* stream) {
  const ForwardArgs<T> args{node, states, pre, out};
  const int64_t size = node.batch * node.units;
  if (node.units % kFullPack<T> == 0 && are_aligned(states, pre, out)) {
    ADVNAS_LAUNCH((forward_kernel<T, kFullPack<T>>), blocks_for(size / kFullPack<T>), kBlock, 0, stream)(args);
  } else {
    ADVNAS_LAUNCH((forward_kernel<T, 1>), blocks_for(size), kBlock, 0, stream)(args);
  }
}

template <class T>
void recurrent_backward(const RecurrentNode<float>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                        double* sums, float* workspace, void* stream) {
  const BackwardArgs<T> args{node, states, pre, dout, dstates, dpre, sums == nullptr ? nullptr : workspace};
  if (node.units % kFullPack<T> == 0 && are_aligned(states, pre, dout, dstates, dpre)) {
    launch_backward<T, kFullPack<T>>(args, sums, stream);
  } else {
    launch_backward<T, 1>(args, sums, stream);
  }
}

#define ADVNAS_INSTANTIATE(T)                                                                     \
  template void recurrent_forward<T>(const RecurrentNode<float>&, const T*, const T*, T*, void*); \
  template void recurrent_backward<T>(const RecurrentNode<float>&, const T*, const T*, const T*, T*, T*, double*, float*, void*);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
