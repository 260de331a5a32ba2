// Bound by memory. A thread has one pack of channels of a few pixels below each other: whatever it needs of a source is loaded at
// once, the loads of a pooled source overlap in the first-level cache, and the sums stay in registers over all sources.
#include "../node.h"
#include "arrivals.cuh"
#include "device.cuh"
#include "norm.cuh"

namespace advnas::cuda {
namespace {

// Blocks of a backward pass: each leaves partial sums that the last one adds up.
constexpr int kMaxBlocks = 256;

template <class T, int kPack>
__device__ __forceinline__ void start_column(const T* start, const Images& shape, const Column& column, Values<kPack>& sum) {
  if (start != nullptr) return load_column(start, shape, column, sum);
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[h][i] = 0;
  }
}

template <bool kMaxima, class T, int kPack>
__device__ __forceinline__ void forward(const NodeForward<T>& a, const Columns<kPack>& columns) {
  const Images& shape = a.shape;
  const Column column = columns.get(shape, int(blockIdx.x) * columns.lanes.lanes + columns.lanes.lane());
  if (!column.active) return;
  Values<kPack> sum;
  start_column(a.start, shape, column, sum);
  for (int k = 0; k < a.num; ++k) {
    const NodeSource<T>& source = a.source[k];
    Values<kPack> value;
    arrive<false, kMaxima>(source, source.data, shape, column, value);
    float scale[kPack], shift[kPack] = {};
#pragma unroll
    for (int i = 0; i < kPack; ++i) scale[i] = source.gate;
    if (source.scale_shift != nullptr) {
      const int channel = columns.lanes.pack() * kPack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        scale[i] = source.scale_shift[channel + i];
        shift[i] = source.scale_shift[shape.channels + channel + i];
      }
    }
#pragma unroll
    for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[h][i] += scale[i] * value[h][i] + shift[i];
    }
  }
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
    if (h >= column.rows) continue;
    const int64_t at = column.at + int64_t(h) * shape.width * shape.channels;
    if (a.y != nullptr) store(a.y + at, sum[h]);
    if (a.relu == nullptr) continue;
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[h][i] = relu(sum[h][i]);
    store(a.relu + at, sum[h]);
  }
}

// Sums over the whole batch in two stages. A thread adds to its own slots in shared memory, slot k at [k][thread]; `values` of
// them are sums of everything, the rest have a value a channel.
struct Slots {
  float* at;

  __device__ __forceinline__ float& operator[](int slot) const { return at[slot * int(blockDim.x) + int(threadIdx.x)]; }
};

// s1 and then s2 of each convolution, if anybody wants them.
template <class T>
ADVNAS_HOST_DEVICE inline int channel_sums(const NodeBackward<T>& a) {
  return a.num_sums > 0 || a.total != nullptr ? 1 + a.num_sums : 0;
}

// Of one block: the sums of the sources, then those of the channels.
template <class T>
__device__ __forceinline__ int partial_size(const NodeBackward<T>& a) {
  return a.num + channel_sums(a) * a.shape.channels;
}

template <class T, int kPack>
__device__ void write_partial(const NodeBackward<T>& a, const Columns<kPack>& columns, const Slots& slots) {
  float* const row = a.partial + int64_t(blockIdx.x) * partial_size(a);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  for (int k = warp; k < a.num; k += int(blockDim.x) / kWarp) {
    float sum = 0;
    for (int t = lane; t < int(blockDim.x); t += kWarp) sum += slots.at[k * int(blockDim.x) + t];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(kAllLanes, sum, offset);
    if (lane == 0) row[int64_t(blockIdx.y) * gridDim.x * partial_size(a) + k] = sum;
  }
  const int channels = columns.lanes.slab * kPack;  // of this block
  for (int v = int(threadIdx.x); v < channel_sums(a) * channels; v += int(blockDim.x)) {
    const int which = v / channels, c = v % channels, channel = int(blockIdx.y) * channels + c;
    if (channel >= a.shape.channels) continue;
    const float* const slot = slots.at + int64_t(a.num + which * kPack + c % kPack) * blockDim.x + c / kPack;
    float sum = 0;
    for (int lane_of = 0; lane_of < columns.lanes.lanes; ++lane_of) sum += slot[lane_of * columns.lanes.slab];
    row[a.num + which * a.shape.channels + channel] = sum;
  }
}

template <bool kMaxima, class T, int kPack>
__device__ __forceinline__ void backward(const NodeBackward<T>& a, const Columns<kPack>& columns) {
  ADVNAS_DYNAMIC_SHARED(memory);
  const Slots slots{reinterpret_cast<float*>(memory)};
  const Images& shape = a.shape;
  const int sums = channel_sums(a);
  for (int slot = 0; slot < a.num + sums * kPack; ++slot) slots[slot] = 0;
  for (int first = int(blockIdx.x) * columns.lanes.lanes; first < columns.num; first += int(gridDim.x) * columns.lanes.lanes) {
    const Column column = columns.get(shape, first + columns.lanes.lane());
    if (!column.active) continue;
    Values<kPack> dx, value, x;
    start_column(a.start, shape, column, dx);
    if (a.x != nullptr) load_column(a.x, shape, column, x);
    for (int k = 0; k < a.num; ++k) {
      const NodeSource<T>& source = a.source[k];
      if (source.arrival == Arrival::kHalved) {
        spread_column(source.data, shape, columns, first + columns.lanes.lane(), column, value);
      } else {
        arrive<true, kMaxima>(source, a.x, shape, column, value);
      }
      const bool masked = source.arrival == Arrival::kMasked;
      float product = 0;
#pragma unroll
      for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          if (source.gate_grad != nullptr) product += value[h][i] * x[h][i];
          dx[h][i] += masked ? (x[h][i] <= 0 ? 0.0f : value[h][i]) : source.gate * value[h][i];
        }
      }
      slots[k] += product;
    }
    if (a.dx != nullptr) {
#pragma unroll
      for (int h = 0; h < kRows<kPack>; ++h) {
        if (h < column.rows) store(a.dx + column.at + int64_t(h) * shape.width * shape.channels, dx[h]);
      }
    }
    const int channel = columns.lanes.pack() * kPack;
    for (int which = 0; which < sums; ++which) {
      float mean[kPack];
      if (which > 0) {
        load_column(a.sum[which - 1].z, shape, column, value);
#pragma unroll
        for (int i = 0; i < kPack; ++i) mean[i] = at_or(a.sum[which - 1].rows, kMean * shape.channels + channel + i, 0);
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        float sum = 0;
#pragma unroll
        for (int h = 0; h < kRows<kPack>; ++h) {
          if (h < column.rows) sum += which == 0 ? dx[h][i] : dx[h][i] * (value[h][i] - mean[i]);
        }
        slots[a.num + which * kPack + i] += sum;
      }
    }
  }
  if (a.counter == nullptr) return;
  __syncthreads();  // the slots are complete
  write_partial(a, columns, slots);
  if (!is_last_block(a.counter)) return;

  const int size = partial_size(a), blocks = int(gridDim.x);
  float* const free = reinterpret_cast<float*>(memory);
  if (a.num > 0) {
    const Shares shares(a.num);
    float* const gate_grad = a.source[shares.column].gate_grad;
    const int num = gate_grad != nullptr ? blocks * int(gridDim.y) : 0;
    const float sum = shares.add_column(a.partial + shares.column, size, num, free);
    if (shares.part == 0 && gate_grad != nullptr) *gate_grad += sum;
  }
  if (sums > 0) finish_sums(a.sum, a.num_sums, a.partial + a.num, size, blocks, shape, a.total, free);
}

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock) node_forward_kernel(const __grid_constant__ NodeForward<T> a, Columns<kPack> columns) {
  forward<false>(a, columns);
}
template <class T, int kPack>  // two blocks: for a third the compiler would spill
__global__ void __launch_bounds__(kBlock, 2)
    node_forward_maxima_kernel(const __grid_constant__ NodeForward<T> a, Columns<kPack> columns) {
  forward<true>(a, columns);
}
template <class T, int kPack>  // two here too, on the newest GPUs
__global__ void __launch_bounds__(kBlock, 2)
    node_backward_kernel(const __grid_constant__ NodeBackward<T> a, Columns<kPack> columns) {
  backward<false>(a, columns);
}
template <class T, int kPack>
__global__ void __launch_bounds__(kBlock)
    node_backward_maxima_kernel(const __grid_constant__ NodeBackward<T> a, Columns<kPack> columns) {
  backward<true>(a, columns);
}

template <class Node>
bool has_maxima(const Node& node) {
  for (int k = 0; k < node.num; ++k) {
    if (node.source[k].arrival == Arrival::kMaxPool) return true;
  }
  return false;
}

template <class T, int kPack>
void launch_forward(const NodeForward<T>& node, void* stream) {
  const auto columns = columns_of<kPack>(node.shape);
  const dim3 grid(columns.blocks(), columns.lanes.slabs);
  if (has_maxima(node)) {
    ADVNAS_LAUNCH((node_forward_maxima_kernel<T, kPack>), grid, columns.lanes.block(), 0, stream)(node, columns);
  } else {
    ADVNAS_LAUNCH((node_forward_kernel<T, kPack>), grid, columns.lanes.block(), 0, stream)(node, columns);
  }
}

template <class T, int kPack>
void launch_backward(const NodeBackward<T>& node, void* stream) {
  const auto columns = columns_of<kPack>(node.shape);
  const int blocks = columns.blocks();
  const dim3 grid(blocks < kMaxBlocks ? blocks : kMaxBlocks, columns.lanes.slabs);
  const int slots = node.num + channel_sums(node) * kPack;
  const int shared = slots * columns.lanes.block() * int(sizeof(float));
  if (has_maxima(node)) {
    ADVNAS_LAUNCH((node_backward_maxima_kernel<T, kPack>), grid, columns.lanes.block(), shared, stream)(node, columns);
  } else {
    ADVNAS_LAUNCH((node_backward_kernel<T, kPack>), grid, columns.lanes.block(), shared, stream)(node, columns);
  }
}

}  // namespace

template <class T>
void node_forward(const NodeForward<T>& node, void* stream) {
  if (node.shape.size() == 0) return;
  node.shape.channels % kFullPack<T> == 0 ? launch_forward<T, kFullPack<T>>(node, stream) : launch_forward<T, 1>(node, stream);
}

template <class T>
void node_backward(const NodeBackward<T>& node, void* stream) {
  if (node.shape.size() == 0) return;
  node.shape.channels % kFullPack<T> == 0 ? launch_backward<T, kFullPack<T>>(node, stream) : launch_backward<T, 1>(node, stream);
}

int64_t node_backward_workspace(const Images& shape) {
  const int64_t slabs = lanes_of(shape.channels).slabs;
  return kMaxBlocks * slabs * (kMaxSources + int64_t(1 + kMaxSums) * shape.channels);
}

#define ADVNAS_INSTANTIATE(T)                                  \
  template void node_forward<T>(const NodeForward<T>&, void*); \
  template void node_backward<T>(const NodeBackward<T>&, void*);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
