// Bound by memory. A thread has one pack of channels of a few pixels below each other: whatever it needs of a source is loaded at
// once, the loads of a pooled source overlap in the first-level cache, and the sums stay in registers over all sources.
#include "../node.h"
#include "../pool_math.h"
#include "device.cuh"
#include "norm.cuh"

namespace advnas::cuda {
namespace {

// Pixels of a thread: more would share more of the pooled rows, and cost the registers that let another block run.
template <int kPack>
inline constexpr int kRows = kPack > 1 ? 2 : 4;
// Blocks of a backward pass: each leaves partial sums that the last one adds up.
constexpr int kMaxBlocks = 256;

// Pixels below each other, from (image, row, w) on.
struct Column {
  int64_t at;  // of the first element
  int row, w, rows;
  bool active;
};

template <int kPack>
struct Columns {
  Lanes lanes;
  int strips, num;  // strips of kRows rows in an image; columns in the batch

  __device__ __forceinline__ Column get(const Images& shape, int index) const {
    const int pack = lanes.pack(), w = index % shape.width, rest = index / shape.width;
    const int row = rest % strips * kRows<kPack>, image = rest / strips;
    const bool active = index < num && lanes.lane() < lanes.lanes && pack * kPack < shape.channels;
    const int64_t pixel = (int64_t(image) * shape.height + row) * shape.width + w;
    return {pixel * shape.channels + pack * kPack, row, w, min(kRows<kPack>, shape.height - row), active};
  }
  int blocks() const { return (num + lanes.lanes - 1) / lanes.lanes; }
};

template <int kPack>
Columns<kPack> columns_of(const Images& shape) {
  const int strips = (shape.height + kRows<kPack> - 1) / kRows<kPack>;
  return {lanes_of((shape.channels + kPack - 1) / kPack), strips, shape.batch * strips * shape.width};
}

template <int kPack>
using Values = float[kRows<kPack>][kPack];

template <class T, int kPack>
__device__ __forceinline__ void load_column(const T* from, const Images& shape, const Column& column, Values<kPack>& to) {
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
    if (h < column.rows) {
      load(from + column.at + int64_t(h) * shape.width * shape.channels, to[h]);
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) to[h][i] = 0;
    }
  }
}

// avg_pool_3x3, or its transpose, at the column. A row's sum over columns meets up to three rows of the result.
template <bool kTransposed, class T, int kPack>
__device__ __forceinline__ void pool_column(const T* from, const Images& shape, const Column& column, Values<kPack>& to) {
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] = 0;
  }
#pragma unroll
  for (int r = -1; r <= kRows<kPack>; ++r) {
    const int row = column.row + r;
    if (row < 0 || row >= shape.height) continue;
    float sum[kPack] = {};
#pragma unroll
    for (int side = -1; side <= 1; ++side) {
      const int w = column.w + side;
      if (w < 0 || w >= shape.width) continue;
      float value[kPack];
      load(from + column.at + (int64_t(r) * shape.width + side) * shape.channels, value);
      const float share = kTransposed ? 1.0f / float(pool_window(w, shape.width) * pool_window(row, shape.height)) : 1.0f;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[i] += value[i] * share;
    }
#pragma unroll
    for (int h = 0; h < kRows<kPack>; ++h) {
      if (h < r - 1 || h > r + 1) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) to[h][i] += sum[i];
    }
  }
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
    if constexpr (kTransposed) continue;
    const float share = 1.0f / float(pool_window(column.w, shape.width) * pool_window(column.row + h, shape.height));
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] *= share;
  }
}

// The transpose of the mean of 2x2 pixels at the column `index`.
template <class T, int kPack>
__device__ __forceinline__ void spread_column(const T* from, const Images& shape, const Columns<kPack>& columns, int index,
                                              const Column& column, Values<kPack>& to) {
  const int channel = columns.lanes.pack() * kPack, height = halved(shape.height), width = halved(shape.width);
  const int image = index / shape.width / columns.strips, w = column.w / 2;
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] = 0;
    if (h >= column.rows) continue;
    const int row = (column.row + h) / 2;
    load(from + (int64_t(image * height + row) * width + w) * shape.channels + channel, to[h]);
    const float share = 1.0f / float(halved_window(row, shape.height) * halved_window(w, shape.width));
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[h][i] *= share;
  }
}

// The source at the column as it arrives, before its gate; not masked, not spread.
template <bool kTransposed, class T, int kPack>
__device__ __forceinline__ void arrive(const NodeSource<T>& source, const Images& shape, const Column& column,
                                       Values<kPack>& to) {
  if (source.arrival == Arrival::kPooled) {
    pool_column<kTransposed>(source.data, shape, column, to);
  } else {
    load_column(source.data, shape, column, to);
  }
}

template <class T, int kPack>
__device__ __forceinline__ void start_column(const T* start, const Images& shape, const Column& column, Values<kPack>& sum) {
  if (start != nullptr) return load_column(start, shape, column, sum);
#pragma unroll
  for (int h = 0; h < kRows<kPack>; ++h) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[h][i] = 0;
  }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock) node_forward_kernel(const __grid_constant__ NodeForward<T> a, Columns<kPack> columns) {
  const Images& shape = a.shape;
  const Column column = columns.get(shape, int(blockIdx.x) * columns.lanes.lanes + columns.lanes.lane());
  if (!column.active) return;
  Values<kPack> sum;
  start_column(a.start, shape, column, sum);
  for (int k = 0; k < a.num; ++k) {
    const NodeSource<T>& source = a.source[k];
    Values<kPack> value;
    arrive<false>(source, shape, column, value);
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

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock)
    node_backward_kernel(const __grid_constant__ NodeBackward<T> a, Columns<kPack> columns) {
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
        arrive<true>(source, shape, column, value);
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
  for (int k = int(threadIdx.x); k < a.num; k += int(blockDim.x)) {
    if (a.source[k].gate_grad == nullptr) continue;
    *a.source[k].gate_grad += sum_column(a.partial + k, size, blocks * int(gridDim.y));
  }
  if (sums > 0) finish_sums(a.sum, a.num_sums, a.partial + a.num, size, blocks, shape, a.total);
}

template <class T, int kPack>
void launch_forward(const NodeForward<T>& node, void* stream) {
  const auto columns = columns_of<kPack>(node.shape);
  const dim3 grid(columns.blocks(), columns.lanes.slabs);
  ADVNAS_LAUNCH((node_forward_kernel<T, kPack>), grid, columns.lanes.block(), 0, stream)(node, columns);
}

template <class T, int kPack>
void launch_backward(const NodeBackward<T>& node, void* stream) {
  const auto columns = columns_of<kPack>(node.shape);
  const int blocks = columns.blocks();
  const dim3 grid(blocks < kMaxBlocks ? blocks : kMaxBlocks, columns.lanes.slabs);
  const int slots = node.num + channel_sums(node) * kPack;
  ADVNAS_LAUNCH((node_backward_kernel<T, kPack>), grid, columns.lanes.block(), slots * columns.lanes.block() * int(sizeof(float)),
                stream)(node, columns);
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
