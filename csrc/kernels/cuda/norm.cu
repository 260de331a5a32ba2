#include "norm.cuh"

namespace advnas::cuda {
namespace {

// A block leaves its sums in memory: few blocks move fewer bytes, many keep the GPU busy.
constexpr int kMaxBlocks = 256, kMinPixels = 8;  // of a thread, if there are as many

// A thread sums one pack of channels over its pixels, about the values of the block's first pixel.
template <class T, int kPack>
__global__ void __launch_bounds__(kBlock, 4)
    statistics_kernel(const T* z, Images shape, Lanes lanes, const __grid_constant__ NormForward norm, float* partial,
                      unsigned* counter) {
  ADVNAS_DYNAMIC_SHARED(memory);
  float* const sums = reinterpret_cast<float*>(memory);  // [2 kPack, thread]
  const int pack = lanes.pack(), threads = int(blockDim.x), channels = shape.channels;
  const int64_t pixels = shape.pixels(), first = int64_t(blockIdx.x) * lanes.lanes, step = int64_t(gridDim.x) * lanes.lanes;
  const bool active = lanes.lane() < lanes.lanes && pack * kPack < channels;
  float origin[kPack] = {}, sum[kPack] = {}, squares[kPack] = {};
  if (active) {
    load(z + first * channels + pack * kPack, origin);
    for (int64_t pixel = first + lanes.lane(); pixel < pixels; pixel += step) {
      float value[kPack];
      load(z + pixel * channels + pack * kPack, value);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float distance = value[i] - origin[i];
        sum[i] += distance;
        squares[i] += distance * distance;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    sums[i * threads + threadIdx.x] = sum[i];
    sums[(kPack + i) * threads + threadIdx.x] = squares[i];
  }
  __syncthreads();  // sums is complete
  float* const row = statistics_of_block(partial, int(blockIdx.x), channels);
  int64_t count = 0;
  for (int64_t at = first; at < pixels; at += step) count += min(int64_t(lanes.lanes), pixels - at);
  if (threadIdx.x == 0 && blockIdx.y == 0) row[0] = float(count);
  if (active && lanes.lane() == 0) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float total = 0, total_squares = 0;
      for (int lane = 0; lane < lanes.lanes; ++lane) {
        total += sums[i * threads + lane * lanes.slab + threadIdx.x];
        total_squares += sums[(kPack + i) * threads + lane * lanes.slab + threadIdx.x];
      }
      const float distance = total / float(count);
      row[1 + pack * kPack + i] = origin[i] + distance;
      row[1 + channels + pack * kPack + i] = fmaxf(total_squares - total * distance, 0);
    }
  }
  if (is_last_block(counter)) finish_statistics(norm, partial, int(gridDim.x), channels, sums);
}

__global__ void __launch_bounds__(kBlock) fixed_kernel(int channels, const __grid_constant__ NormForward norm) {
  const int c = int(blockIdx.x) * kBlock + int(threadIdx.x);
  if (c >= channels) return;
  const float rstd = norm.running_var != nullptr ? 1 / sqrtf(norm.running_var[c] + norm.eps) : 1;
  write_rows(norm, channels, c, at_or(norm.running_mean, c, 0) - at_or(norm.bias, c, 0), rstd);
}

template <class T, int kPack>
__global__ void __launch_bounds__(kBlock)
    gradient_kernel(const T* dy, const T* z, const float* gradient, T* dz, int64_t packs, int channels) {
  const int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= packs) return;
  const float* const row = gradient + i * kPack % channels;
  float in[kPack], of[kPack];
  load(dy + i * kPack, in);
  load(z + i * kPack, of);
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    in[k] = row[kOfDy * channels + k] * in[k] + row[kOfZ * channels + k] * of[k] + row[kConstant * channels + k];
  }
  store(dz + i * kPack, in);
}

template <class T, int kPack>
void launch_statistics(const T* z, const Images& shape, const NormForward& norm, float* partial, unsigned* counter,
                       void* stream) {
  const Lanes lanes = lanes_of((shape.channels + kPack - 1) / kPack);
  const int64_t of_block = lanes.lanes * kMinPixels, blocks = (shape.pixels() + of_block - 1) / of_block;
  const dim3 grid(unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks), lanes.slabs);
  ADVNAS_LAUNCH((statistics_kernel<T, kPack>), grid, lanes.block(), 2 * kPack * lanes.block() * int(sizeof(float)), stream)
  (z, shape, lanes, norm, partial, counter);
}

template <class T, int kPack>
void launch_gradient(const T* dy, const T* z, const float* gradient, T* dz, const Images& shape, void* stream) {
  const int64_t packs = shape.size() / kPack;
  ADVNAS_LAUNCH((gradient_kernel<T, kPack>), unsigned((packs + kBlock - 1) / kBlock), kBlock, 0, stream)
  (dy, z, gradient, dz, packs, shape.channels);
}

}  // namespace

template <class T>
void norm_statistics(const T* z, const Images& shape, const NormForward& norm, float* partial, unsigned* counter, void* stream) {
  if (shape.size() == 0) return;
  constexpr int kFull = kFullPack<T>;
  shape.channels % kFull == 0 ? launch_statistics<T, kFull>(z, shape, norm, partial, counter, stream)
                              : launch_statistics<T, 1>(z, shape, norm, partial, counter, stream);
}

int64_t norm_statistics_workspace(const Images& shape) { return kMaxBlocks * int64_t(1 + 2 * shape.channels); }

void norm_fixed(int channels, const NormForward& norm, void* stream) {
  ADVNAS_LAUNCH(fixed_kernel, unsigned((channels + kBlock - 1) / kBlock), kBlock, 0, stream)(channels, norm);
}

template <class T>
void norm_gradient(const T* dy, const T* z, const float* gradient, T* dz, const Images& shape, void* stream) {
  if (shape.size() == 0) return;
  constexpr int kFull = kFullPack<T>;
  shape.channels % kFull == 0 ? launch_gradient<T, kFull>(dy, z, gradient, dz, shape, stream)
                              : launch_gradient<T, 1>(dy, z, gradient, dz, shape, stream);
}

#define ADVNAS_INSTANTIATE(T)                                                                              \
  template void norm_statistics<T>(const T*, const Images&, const NormForward&, float*, unsigned*, void*); \
  template void norm_gradient<T>(const T*, const T*, const float*, T*, const Images&, void*);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
