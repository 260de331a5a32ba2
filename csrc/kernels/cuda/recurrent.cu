// Bound by memory: 16-byte loads and stores, each pre-activation touched once, the advantages summed on the way.
// Backward, each source of the node has its own blocks, so that no two threads write to one place and the sums of a thread stay
// in registers. The sums have two stages and a fixed order (partial sums of the blocks, then one block over them): no float
// atomics, so the same input gives the same bits.
#include "../recurrent.h"
#include "../recurrent_math.h"
#include "device.cuh"

namespace advnas::cuda {
namespace {

constexpr int kSums =
    kNumRecurrentOps + 1;  // of a source: dg of each operation; the last one, of the first source, is that of ds

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

template <class T, int kSize>
__global__ void forward_kernel(const __grid_constant__ ForwardArgs<T> args) {
  const RecurrentNode<float>& node = args.node;
  const int64_t units = node.units, packs_in_row = units / kSize, packs = node.batch * packs_in_row;
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < packs; i += stride) {
    const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
    float sum[kSize] = {};
    for (int k = 0; k < node.num_sources; ++k) {
      const T* const z = args.pre + (k * node.batch + row) * 2 * units + unit;
      float s[kSize], c[kSize], u[kSize];
      load(args.states + (node.source[k].state * node.batch + row) * units + unit, s);
      load(z, c);
      load(z + units, u);
      const uint32_t picked = node.source[k].picked;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const float state = s[j], in = u[j], gate = DeviceMath::sigmoid(c[j]);
#pragma unroll
        for (int op = 0; op < kNumRecurrentOps; ++op) {
          if ((picked >> op & 1) == 0) continue;
          const float f = recurrent_activation<DeviceMath>(op, in);
          sum[j] += node.source[k].gate[op] * recurrent_output(state, gate, f);
        }
      }
    }
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

// blockIdx.y: the source; the blocks of the first one sum ds too, and are there even if the node has no source.
template <class T, int kSize>
__global__ void backward_kernel(const __grid_constant__ BackwardArgs<T> args) {
  __shared__ float of_warp[kSums][kBlock / kWarp];
  const RecurrentNode<float>& node = args.node;
  const int k = blockIdx.y;
  const bool is_source = k < node.num_sources;
  const uint32_t picked = is_source ? node.source[k].picked : 0;
  const int64_t state = is_source ? node.source[k].state : 0;
  const int64_t units = node.units, packs_in_row = units / kSize, packs = node.batch * packs_in_row;
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  float sums[kSums] = {};
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < packs; i += stride) {
    const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
    float d[kSize];
    load(args.dout + row * units + unit, d);
    if (k == 0) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) sums[kNumRecurrentOps] += d[j];
    }
    if (!is_source) continue;
    const int64_t z = (k * node.batch + row) * 2 * units + unit, place = (state * node.batch + row) * units + unit;
    float s[kSize], c[kSize], u[kSize], ds[kSize];
    load(args.states + place, s);
    load(args.pre + z, c);
    load(args.pre + z + units, u);
    load(args.dstates + place, ds);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const float dout = d[j], from = s[j], in = u[j];
      const float gate = DeviceMath::sigmoid(c[j]);
      RecurrentGradient<float> gradient{0, 0, 0};
#pragma unroll
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if ((picked >> op & 1) == 0) continue;
        const float f = recurrent_activation<DeviceMath>(op, in);
        gradient.add(node.source[k].gate[op] * dout, from, f, recurrent_slope(op, f));
        sums[op] += dout * recurrent_output(from, gate, f);
      }
      c[j] = gradient.dc(gate);
      u[j] = gradient.du(gate);
      ds[j] = ds[j] + gradient.dstate(gate);
    }
    store(args.dpre + z, c);
    store(args.dpre + z + units, u);
    store(args.dstates + place, ds);
  }
  if (args.partial == nullptr) return;
  sum_block(sums, of_warp, args.partial + int64_t(k) * kSums * gridDim.x, gridDim.x, blockIdx.x);
}

// partial: [gridDim.x, kSums, blocks]. A block for each source.
__global__ void sum_partials_kernel(const float* partial, int blocks, int num_sources, double* sums) {
  __shared__ float of_warp[kSums][kBlock / kWarp];
  __shared__ float total[kSums];
  const int k = blockIdx.x;
  float value[kSums] = {};
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    for (int i = threadIdx.x; i < blocks; i += kBlock) value[n] += partial[(int64_t(k) * kSums + n) * blocks + i];
  }
  sum_block(value, of_warp, total, 1, 0);
  // Thread n has written total[n] itself.
  if (threadIdx.x < kNumRecurrentOps && k < num_sources) sums[k * kNumRecurrentOps + threadIdx.x] += total[threadIdx.x];
  if (threadIdx.x == kNumRecurrentOps && k == 0) sums[num_sources * kNumRecurrentOps] += total[threadIdx.x];
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
  ADVNAS_LAUNCH(sum_partials_kernel, rows, kBlock, 0, stream)(args.partial, blocks, args.node.num_sources, sums);
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
