// A block keeps the weight in shared memory and goes over tiles of pixels: each is loaded once, through its prologue,
// multiplied there, and its result written once. Sums over pixels (the statistics of z, the weight's gradient) stay in registers
// over all tiles of the block, and the last block adds them up.
//
// Where the weight's gradient is wanted, a block has but a slice of the input channels, with all of the output's: it leaves so
// many columns of the gradient, so that few and long ranges of pixels, whose gradients are few bytes, are still many blocks.
#include "../pointwise.h"
#include "../pool_math.h"
#include "norm.cuh"
#include "tile.cuh"

namespace advnas::cuda {
namespace {

constexpr int kWarps = kBlock / kWarp;
// A block leaves its sums in memory: few blocks move fewer bytes, many keep the GPU busy.
constexpr int kMaxBlocks = 256, kMinTiles = 2;
constexpr int kMaxRanges = 128, kLeastPart = 32;  // of the weight's gradient: they leave at most this part of what tensors weigh
constexpr int kWeightTiles = 2;                   // of the weight's gradient, that a warp keeps
constexpr int kMaxShared = 48 << 10;

ADVNAS_HOST_DEVICE inline int padded(int channels) { return (channels + kTile - 1) / kTile * kTile; }

// How a block uses its shared memory; offsets in bytes. Matrices are in the type of the tensors, results in float.
template <class T>
struct Layout {
  int in, out;  // of the block, padded to whole tiles
  int rows;     // pixels of a tile
  int in_stride, out_stride, result_stride;
  int weight, x, dz, result, bytes;

  static Layout make(const PointwiseShape& shape, int rows, bool backward, bool to_weight) {
    Layout l{};
    l.in = to_weight ? kTile : padded(shape.in);
    l.out = padded(shape.out);
    l.rows = rows;
    l.in_stride = l.in + kPadding<T>;
    l.out_stride = l.out + kPadding<T>;
    l.result_stride = (backward ? l.in : l.out) + kPadding<float>;
    int end = 0;
    const auto take = [&](int elements, int size) {
      const int at = end;
      end += (elements * size + 127) / 128 * 128;
      return at;
    };
    // Forward the weight is [in, out], backward as it is stored: [out, in].
    l.weight = take(backward ? l.out * l.in_stride : l.in * l.out_stride, sizeof(T));
    l.x = take(rows * l.in_stride, sizeof(T));
    l.dz = take(backward ? rows * l.out_stride : 0, sizeof(T));
    // Forward it takes two sums of each thread in the end, which are more than a result of 16 pixels and 16 channels.
    const int sums = backward ? 0 : 2 * kBlock, elements = rows * l.result_stride;
    l.result = take(elements > sums ? elements : sums, sizeof(float));
    l.bytes = end;
    return l;
  }

  bool fits() const { return bytes <= kMaxShared; }

  // The tile with the most pixels that fits, but no more tiles of the result than keep every warp busy twice.
  static Layout best(const PointwiseShape& shape, bool backward, bool to_weight) {
    int rows = 128;
    Layout layout = make(shape, rows, backward, to_weight);
    const int columns = (backward ? layout.in : layout.out) / kTile;
    while (rows > kTile && (!layout.fits() || rows / kTile * columns > 2 * kWarps)) {
      layout = make(shape, rows /= 2, backward, to_weight);
    }
    return layout;
  }
};

// Pixels and channels of a tile: from `pixel` and `channel` on, if there are as many.
struct Part {
  int64_t pixel, pixels;
  int channel, channels;
};

// [rows, columns] into shared memory, zeros where there is nothing. value(pixel, channel, values) makes them.
template <int kPack, class T, class Value>
__device__ __forceinline__ void fill(T* to, int stride, int rows, int columns, const Part& part, const Value& value) {
  const int packs = columns / kPack;
  for (int i = int(threadIdx.x); i < rows * packs; i += kBlock) {
    const int row = i / packs, column = i % packs * kPack, channel = part.channel + column;
    const int64_t pixel = part.pixel + row;
    float v[kPack] = {};
    if (pixel < part.pixels && channel < part.channels) value(pixel, channel, v);
    store(to + row * stride + column, v);
  }
}

// The mean of the pixels of x that are `pixel` of the halved image.
template <int kPack, class T>
__device__ __forceinline__ void load_mean(const T* x, const PointwisePrologue& prologue, int channels, int64_t pixel, int channel,
                                          float (&v)[kPack]) {
  const int width = halved(prologue.width), w = int(pixel % width);
  const int64_t line = pixel / width, image = line / halved(prologue.height);
  const int h = int(line % halved(prologue.height));
  const int down = halved_window(h, prologue.height), across = halved_window(w, prologue.width);
  const T* const first = x + ((image * prologue.height + 2 * h) * prologue.width + 2 * w) * channels + channel;
  for (int k = 0; k < down * across; ++k) {
    float value[kPack];
    load(first + (int64_t(k / across) * prologue.width + k % across) * channels, value);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] += value[i];
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) v[i] /= float(down * across);
}

template <int kPack, class T>
__device__ __forceinline__ void fill_prologue(T* to, int stride, int rows, int columns, const T* x,
                                              const PointwisePrologue& prologue, const Part& part) {
  fill<kPack>(to, stride, rows, columns, part, [&](int64_t pixel, int channel, float (&v)[kPack]) {
    if (prologue.height > 0) return load_mean(x, prologue, part.channels, pixel, channel, v);
    load(x + pixel * part.channels + channel, v);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = prologue.relu ? relu(v[i]) : v[i];
  });
}

// The tile's result [rows, columns] from shared memory to [pixels, channels].
template <int kPack, class T>
__device__ __forceinline__ void write_result(const float* result, int stride, int rows, int columns, T* to, const Part& part) {
  const int packs = columns / kPack;
  for (int i = int(threadIdx.x); i < rows * packs; i += kBlock) {
    const int row = i / packs, column = i % packs * kPack;
    if (part.pixel + row >= part.pixels) break;
    float v[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) v[k] = result[row * stride + column + k];
    store(to + (part.pixel + row) * part.channels + part.channel + column, v);
  }
}

// result [rows, columns] = a [rows, inner] b [inner, columns], all in shared memory.
template <class T>
__device__ __forceinline__ void multiply(const T* a, int a_stride, const T* b, int b_stride, float* result, int result_stride,
                                         int rows, int inner, int columns) {
  for (int t = int(threadIdx.x) / kWarp; t < (rows / kTile) * (columns / kTile); t += kWarps) {
    const int row = t / (columns / kTile) * kTile, column = t % (columns / kTile) * kTile;
    Tile<T> tile;
    tile.clear();
    for (int k = 0; k < inner; k += kTile) {
      tile.template add<false>(a + row * a_stride + k, a_stride, b + k * b_stride + column, b_stride);
    }
    tile.put(result + row * result_stride + column, result_stride);
  }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock, 3)
    forward_kernel(const __grid_constant__ PointwiseForward<T> a, const __grid_constant__ Layout<T> l) {
  ADVNAS_DYNAMIC_SHARED(memory);
  T* const weight = reinterpret_cast<T*>(memory + l.weight);
  T* const x = reinterpret_cast<T*>(memory + l.x);
  float* const result = reinterpret_cast<float*>(memory + l.result);
  const int in = a.shape.in, out = a.shape.out, thread = int(threadIdx.x);
  const int64_t pixels = a.shape.pixels, step = int64_t(gridDim.x) * l.rows;
  for (int i = thread; i < l.in * l.out; i += kBlock) {
    const int o = i / l.in, c = i % l.in;
    weight[c * l.out_stride + o] = o < out && c < in ? a.weight[o * in + c] : T(0.0f);
  }
  // A thread sums one channel over every parts-th row of each tile, about the channel's first value in the block.
  const int parts = kBlock / l.out, channel = thread % l.out, part = thread / l.out;
  float origin = 0, sum = 0, squares = 0;
  int64_t count = 0;
  for (int64_t first = int64_t(blockIdx.x) * l.rows; first < pixels; first += step) {
    fill_prologue<kPack>(x, l.in_stride, l.rows, l.in, a.x, a.prologue, {first, pixels, 0, in});
    __syncthreads();  // the tile, and the first time the weight, is complete
    multiply(x, l.in_stride, weight, l.out_stride, result, l.result_stride, l.rows, l.in, l.out);
    __syncthreads();  // the result is complete
    const int rows = int(min(int64_t(l.rows), pixels - first));
    write_result<kPack>(result, l.result_stride, rows, out, a.z, {first, pixels, 0, out});
    if (a.of_batch && part < parts) {
      const auto stored = [&](int row) { return float(T(result[row * l.result_stride + channel])); };
      if (count == 0) origin = stored(0);
      for (int row = part; row < rows; row += parts) {
        const float distance = stored(row) - origin;
        sum += distance;
        squares += distance * distance;
      }
    }
    count += rows;
    __syncthreads();  // tile and result are free
  }
  if (!a.of_batch) return;
  if (part < parts) {
    result[thread] = sum;
    result[kBlock + thread] = squares;
  }
  __syncthreads();  // the parts' sums are complete
  float* const row = statistics_of_block(a.partial, int(blockIdx.x), out);
  if (thread == 0) row[0] = float(count);
  if (thread < out) {
    for (int p = 1; p < parts; ++p) {
      sum += result[p * l.out + thread];
      squares += result[kBlock + p * l.out + thread];
    }
    const float distance = sum / float(count);
    row[1 + thread] = origin + distance;
    row[1 + out + thread] = fmaxf(squares - sum * distance, 0);
  }
  if (is_last_block(a.counter)) finish_statistics(a.norm, a.partial, int(gridDim.x), out, result);
}

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock, 2)
    backward_kernel(const __grid_constant__ PointwiseBackward<T> a, const __grid_constant__ Layout<T> l) {
  ADVNAS_DYNAMIC_SHARED(memory);
  T* const weight = reinterpret_cast<T*>(memory + l.weight);
  T* const x = reinterpret_cast<T*>(memory + l.x);
  T* const dz = reinterpret_cast<T*>(memory + l.dz);
  float* const result = reinterpret_cast<float*>(memory + l.result);
  const int in = a.shape.in, out = a.shape.out, thread = int(threadIdx.x), warp = thread / kWarp;
  // The block's slice of the input channels. A warp has tiles of the gradient of all its columns, one below the other.
  const int slice = int(blockIdx.y) * l.in, width = min(l.in, in - slice), tiles = l.out / kTile;
  const int64_t pixels = a.shape.pixels, step = int64_t(gridDim.x) * l.rows;
  if (a.dp != nullptr) {
    for (int i = thread; i < l.in * l.out; i += kBlock) {
      const int o = i / l.in, c = i % l.in;
      weight[o * l.in_stride + c] = o < out && c < width ? a.weight[o * in + slice + c] : T(0.0f);
    }
  }
  Tile<T> dweight[kWeightTiles];
#pragma unroll
  for (int j = 0; j < kWeightTiles; ++j) dweight[j].clear();
  for (int64_t first = int64_t(blockIdx.x) * l.rows; first < pixels; first += step) {
    fill<kPack>(dz, l.out_stride, l.rows, l.out, {first, pixels, 0, out}, [&](int64_t pixel, int channel, float (&v)[kPack]) {
      const int64_t at = pixel * out + channel;
      float z[kPack];
      load(a.dy + at, v);
      load(a.z + at, z);
      const float* const row = a.gradient + channel;
#pragma unroll
      for (int i = 0; i < kPack; ++i) v[i] = row[kOfDy * out + i] * v[i] + row[kOfZ * out + i] * z[i] + row[kConstant * out + i];
    });
    const Part part{first, pixels, slice, in};
    if (a.dweight != nullptr) fill_prologue<kPack>(x, l.in_stride, l.rows, l.in, a.x, a.prologue, part);
    __syncthreads();  // the tiles, and the first time the weight, are complete
    if (a.dp != nullptr) multiply(dz, l.out_stride, weight, l.in_stride, result, l.result_stride, l.rows, l.out, l.in);
    if (a.dweight != nullptr) {
#pragma unroll
      for (int j = 0; j < kWeightTiles; ++j) {
        const int t = warp + j * kWarps;
        if (t >= tiles) continue;
        for (int row = 0; row < l.rows; row += kTile) {
          dweight[j].template add<true>(dz + row * l.out_stride + t * kTile, l.out_stride, x + row * l.in_stride, l.in_stride);
        }
      }
    }
    __syncthreads();  // the result is complete, the tiles are free
    if (a.dp != nullptr) write_result<kPack>(result, l.result_stride, l.rows, width, a.dp, part);
  }
  if (a.dweight == nullptr) return;
  __syncthreads();  // shared memory is free
  // [l.out, l.in], which takes less than the weight and dz.
  float* const sums = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int j = 0; j < kWeightTiles; ++j) {
    const int t = warp + j * kWarps;
    if (t < tiles) dweight[j].put(sums + t * kTile * l.in, l.in);
  }
  __syncthreads();  // the block's gradient is complete
  const bool alone = gridDim.x == 1;
  float* const partial = a.partial + int64_t(blockIdx.x) * in * out;
  for (int i = thread; i < out * width; i += kBlock) {
    const int o = i / width, c = i % width, at = o * in + slice + c;
    const float sum = sums[o * l.in + c];
    if (alone) {
      a.dweight[at] = T(sum);
    } else {
      partial[at] = sum;
    }
  }
  // The slices end each by itself.
  if (alone || !is_last_block(a.counter + blockIdx.y, gridDim.x)) return;
  for (int i = thread; i < out * width; i += kBlock) {
    const int at = i / width * in + slice + i % width;
    a.dweight[at] = T(sum_column(a.partial + at, in * out, int(gridDim.x)));
  }
}

// Each block has at least so many tiles, if there are as many.
int blocks_for(int64_t pixels, int rows, int tiles, int most) {
  const int64_t blocks = (pixels + rows * tiles - 1) / (rows * tiles);
  return int(blocks < most ? blocks : most);
}

// Ranges of pixels, each of which leaves a gradient of the weight that is written and read: at least one, which leaves none.
template <class T>
int ranges_for(const PointwiseShape& shape, int rows) {
  const int64_t of_range = 2 * int64_t(sizeof(float)) * shape.in * shape.out;
  const int64_t of_pixel = 2 * int64_t(sizeof(T)) * (shape.in + shape.out);
  const int64_t light = shape.pixels * of_pixel / (of_range * kLeastPart);
  const int most = int(light < kMaxRanges ? light : kMaxRanges), ranges = blocks_for(shape.pixels, rows, 1, most);
  return ranges > 1 ? ranges : 1;
}

template <class T, int kPack>
void launch_forward(const PointwiseForward<T>& a, void* stream) {
  const auto layout = Layout<T>::best(a.shape, false, false);
  ADVNAS_LAUNCH((forward_kernel<T, kPack>), blocks_for(a.shape.pixels, layout.rows, kMinTiles, kMaxBlocks), kBlock, layout.bytes,
                stream)
  (a, layout);
}

template <class T, int kPack>
void launch_backward(const PointwiseBackward<T>& a, void* stream) {
  const bool to_weight = a.dweight != nullptr;
  const auto layout = Layout<T>::best(a.shape, true, to_weight);
  const int blocks = to_weight ? ranges_for<T>(a.shape, layout.rows) : blocks_for(a.shape.pixels, layout.rows, 1, kMaxBlocks);
  const dim3 grid(unsigned(blocks), unsigned((a.shape.in + layout.in - 1) / layout.in));
  ADVNAS_LAUNCH((backward_kernel<T, kPack>), grid, kBlock, layout.bytes, stream)(a, layout);
}

template <class T>
bool packs_evenly(const PointwiseShape& shape) {
  return shape.in % kFullPack<T> == 0 && shape.out % kFullPack<T> == 0;
}

}  // namespace

template <class T>
bool pointwise_fits(const PointwiseShape& shape) {
  return padded(shape.in) <= kBlock && padded(shape.out) <= kBlock && Layout<T>::best(shape, false, false).fits() &&
         Layout<T>::best(shape, true, false).fits() && Layout<T>::best(shape, true, true).fits();
}

template <class T>
void pointwise_forward(const PointwiseForward<T>& a, void* stream) {
  if (a.shape.pixels == 0) return;
  packs_evenly<T>(a.shape) ? launch_forward<T, kFullPack<T>>(a, stream) : launch_forward<T, 1>(a, stream);
}

template <class T>
void pointwise_backward(const PointwiseBackward<T>& a, void* stream) {
  if (a.shape.pixels == 0 && a.dweight == nullptr) return;  // the weight's gradient over no pixels is 0
  packs_evenly<T>(a.shape) ? launch_backward<T, kFullPack<T>>(a, stream) : launch_backward<T, 1>(a, stream);
}

int64_t pointwise_statistics_workspace(const PointwiseShape& shape) { return kMaxBlocks * int64_t(1 + 2 * shape.out); }
int64_t pointwise_gradient_workspace(const PointwiseShape& shape) { return kMaxRanges * int64_t(shape.in) * shape.out; }

#define ADVNAS_INSTANTIATE(T)                                            \
  template bool pointwise_fits<T>(const PointwiseShape&);                \
  template void pointwise_forward<T>(const PointwiseForward<T>&, void*); \
  template void pointwise_backward<T>(const PointwiseBackward<T>&, void*);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
