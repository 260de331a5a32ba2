// Forward and to the input: conv3x3_product.cuh. Statistics of the output stay in registers until a block ends.
//
// To the weight a block has a slice of 16 x 16 channels, whose gradient stays in registers over all its tiles, each warp's over
// its share of the positions. A second launch adds up what the blocks leave: one block would take long for so many sums.
#include "conv3x3_product.cuh"
#include "norm.cuh"

namespace advnas::cuda {
namespace {

constexpr int kWeightSlice = 16, kWeightBlocks = 128, kWeightTiles = 4;  // of a block to the weight, at least

// How many values of a channel, their mean, and their squared distances from it.
struct Moments {
  float count, mean, m2;

  // By the rule of Chan, Golub and LeVeque (1983).
  __device__ __forceinline__ void add(const Moments& other) {
    const float all = count + other.count;
    if (all == 0) return;
    const float distance = other.mean - mean, part = other.count / all;
    mean += distance * part;
    m2 += other.m2 + distance * distance * count * part;
    count = all;
  }
};

// Of the rows that a lane has, about the first of them: nothing cancels where the mean is large beside the spread.
template <int kSize>
struct Statistics {
  float count, origin[kSize], sum[kSize], squares[kSize];

  __device__ __forceinline__ void add(const float (&value)[kSize]) {
#pragma unroll
    for (int c = 0; c < kSize; ++c) {
      if (count == 0) origin[c] = value[c];
      const float distance = value[c] - origin[c];
      sum[c] += distance;
      squares[c] += distance * distance;
    }
    count += 1;
  }

  __device__ __forceinline__ Moments of(int c) const {
    if (count == 0) return {0, 0, 0};
    const float distance = sum[c] / count;
    return {count, origin[c] + distance, fmaxf(squares[c] - sum[c] * distance, 0)};
  }
};

// The block's part (norm.cuh): over the rows of the lanes, then over the warps.
template <int kSlice>
__device__ __forceinline__ void leave_statistics(const Statistics<kSlice / 4>& statistics, float* partial, int slice, int out) {
  ADVNAS_DYNAMIC_SHARED(memory);                                // free after the last tile
  Moments* const of_warp = reinterpret_cast<Moments*>(memory);  // [warp, kSlice]
  const int warp = int(threadIdx.x) / kWarp;
#pragma unroll
  for (int c = 0; c < kSlice / 4; ++c) {
    Moments mine = statistics.of(c);
#pragma unroll
    for (int lanes = 4; lanes < kWarp; lanes *= 2) {
      mine.add({__shfl_xor_sync(kAllLanes, mine.count, lanes), __shfl_xor_sync(kAllLanes, mine.mean, lanes),
                __shfl_xor_sync(kAllLanes, mine.m2, lanes)});
    }
    if (lane_of() < 4) of_warp[warp * kSlice + lane_of() * (kSlice / 4) + c] = mine;
  }
  __syncthreads();  // of_warp is complete
  const int channel = int(threadIdx.x);
  if (channel >= kSlice) return;
  Moments all = of_warp[channel];
  for (int w = 1; w < int(blockDim.x) / kWarp; ++w) all.add(of_warp[w * kSlice + channel]);
  float* const row = statistics_of_block(partial, int(blockIdx.x), out);
  if (channel == 0 && slice == 0) row[0] = all.count;
  row[1 + slice + channel] = all.mean;
  row[1 + out + slice + channel] = all.m2;
}

template <class T, int kSlice>
__global__ void __launch_bounds__(kBlock, 2)
    conv3x3_forward_kernel(const __grid_constant__ Conv3x3Forward<T> a, const __grid_constant__ Layout l) {
  const int in = a.shape.in, out = a.shape.out, slice = int(blockIdx.y) * kSlice;
  Statistics<kSlice / 4> statistics{};
  run_tiles<T, kSlice>(
      a.shape, l,
      [&](T* to, int part, int64_t first) {
        fill_positions(to, l.stride, TileRows(l.positions, a.shape.pitch()).rows, l.part, a.shape, first,
                       input_of(a.x, a.relu, in, part));
      },
      [&](T* to, int part) {
        constexpr int kPack = kFullPack<T>;
        const int packs = l.part / kPack;  // of a channel's tap
        for_packs<kPack>(
            kSlice * kTaps * packs,
            [&](int i, float (&v)[kPack]) { load(a.weight + (slice * kTaps + i / packs) * in + part + i % packs * kPack, v); },
            [&](int i, float (&v)[kPack]) {
              const int tap = i / packs % kTaps, channel = i / packs / kTaps;
              store_rounded(to + (tap * kSlice + column_of<kSlice>(channel)) * l.stride + i % packs * kPack, v);
            });
      },
      [&](const Sums<kSlice>& sums, int64_t first) {
        sums.give(a.shape, first, [&](int64_t pixel, int channel, float (&v)[kSlice / 4]) {
          store_packs(a.z + pixel * out + slice + channel, v);
          if (!a.of_batch) return;
#pragma unroll
          for (float& each : v) each = float(T(each));
          statistics.add(v);
        });
      });
  if (!a.of_batch) return;
  leave_statistics<kSlice>(statistics, a.partial, slice, out);
  ADVNAS_DYNAMIC_SHARED(memory);
  if (is_last_block(a.counter)) {
    finish_statistics(a.norm, a.partial, int(gridDim.x), out, reinterpret_cast<float*>(memory));
  }
}

template <class T, int kSlice>
__global__ void __launch_bounds__(kBlock, 2)
    conv3x3_input_kernel(const __grid_constant__ Conv3x3Input<T> a, const __grid_constant__ Layout l) {
  const int in = a.shape.in, out = a.shape.out, slice = int(blockIdx.y) * kSlice;
  run_tiles<T, kSlice>(
      a.shape, l,
      [&](T* to, int part, int64_t first) {
        fill_positions(to, l.stride, TileRows(l.positions, a.shape.pitch()).rows, l.part, a.shape, first,
                       gradient_of(a.dy, a.z, a.gradient, out, part));
      },
      [&](T* to, int part) {  // turned around, and the output's channels contiguous
        constexpr int kPack = kFullPack<T>;
        const auto tap_of = [&](int i) { return i / l.part % kTaps; };
        const auto channel_of = [&](int i) { return i / l.part / kTaps * kPack; };
        for_packs<kPack>(
            l.part * kTaps * (kSlice / kPack),
            [&](int i, float (&v)[kPack]) {
              load(a.weight + ((part + i % l.part) * kTaps + tap_of(i)) * in + slice + channel_of(i), v);
            },
            [&](int i, float (&v)[kPack]) {
              T* const column = to + (kTaps - 1 - tap_of(i)) * kSlice * l.stride + i % l.part;
#pragma unroll
              for (int c = 0; c < kPack; ++c) {
                column[column_of<kSlice>(channel_of(i) + c) * l.stride] = T(rounded<T>(v[c]));
              }
            });
      },
      [&](const Sums<kSlice>& sums, int64_t first) {
        sums.give(a.shape, first, [&](int64_t pixel, int channel, const float (&v)[kSlice / 4]) {
          store_packs(a.dp + pixel * in + slice + channel, v);
        });
      });
}

// Of the kernel to the weight. Its warps are groups of two, for 8 input channels each; a group has a share of the positions.
constexpr int kWeightStride = kWeightSlice + kPaddingAcross;
constexpr int kGroups = kBlock / kWarp / 2;
constexpr int kGroupSums = kTaps * kWeightSlice * kWeightSlice;

struct WeightLayout {
  int positions, x, bytes;  // where x begins, and all, in bytes
  int tiles, ranges;

  template <class T>
  static WeightLayout make(const Conv3x3Shape& s, int positions) {
    WeightLayout l{};
    l.positions = positions;
    l.x = positions * kWeightStride * int(sizeof(T));
    const int tile = l.x + TileRows(positions, s.pitch()).rows * kWeightStride * int(sizeof(T));
    const int sums = kGroups / 2 * kGroupSums * int(sizeof(float));
    l.bytes = tile > sums ? tile : sums;
    l.tiles = ceil_div(s.positions(), positions);
    const int slices = (s.in / kWeightSlice) * (s.out / kWeightSlice), most = kWeightBlocks / slices;
    const int ranges = l.tiles / kWeightTiles;
    l.ranges = ranges < 1 ? 1 : ranges < most ? ranges : most;
    return l;
  }

  template <class T>
  static WeightLayout best(const Conv3x3Shape& s) {
    const WeightLayout large = make<T>(s, kMostPositions);
    return large.bytes <= kMaxShared && large.tiles >= 2 * large.ranges ? large : make<T>(s, kLeastPositions);
  }
};

// The gradient of 16 channels of the output by 8 of the input, for each tap.
struct WeightSums {
  float at[kTaps][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kTaps * 4; ++i) at[i / 4][i % 4] = 0;
  }

  // each(tap, output channel, input channel, sum) of the lane.
  template <class Each>
  __device__ __forceinline__ void visit(const Each& each) {
#pragma unroll
    for (int i = 0; i < kTaps * 4; ++i) {
      each(i / 4, lane_of() / 4 + i % 4 / 2 * 8, lane_of() % 4 * 2 + i % 2, at[i / 4][i % 4]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock, 2)
    conv3x3_weight_kernel(const __grid_constant__ Conv3x3Weight<T> a, const __grid_constant__ WeightLayout l) {
  ADVNAS_DYNAMIC_SHARED(memory);
  T* const dz = reinterpret_cast<T*>(memory);
  T* const x = reinterpret_cast<T*>(memory + l.x);
  const Conv3x3Shape& s = a.shape;
  const int slices = s.in / kWeightSlice, warp = int(threadIdx.x) / kWarp, group = warp / 2, column = warp % 2 * 8;
  const int from = int(blockIdx.y) % slices * kWeightSlice, to = int(blockIdx.y) / slices * kWeightSlice;
  WeightSums sums;
  sums.clear();
  for (int tile = int(blockIdx.x); tile < l.tiles; tile += int(gridDim.x)) {
    const int64_t first = int64_t(tile) * l.positions;
    const TileRows rows(l.positions, s.pitch());
    fill_positions(dz, kWeightStride, rows.count, kWeightSlice, s, first, gradient_of(a.dy, a.z, a.gradient, s.out, to));
    fill_positions(x, kWeightStride, rows.rows, kWeightSlice, s, first - rows.border, input_of(a.x, a.relu, s.in, from));
    __syncthreads();  // dz and x are complete
    for (int k = group * 2 * kDepth<T>; k < l.positions; k += kGroups * 2 * kDepth<T>) {
      uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_left_transposed(left[i], dz + (k + i * kDepth<T>)*kWeightStride, kWeightStride);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        uint32_t right[4];
        load_right_transposed(right, x + (k + tap / 3 * s.pitch() + tap % 3) * kWeightStride + column, kWeightStride);
        multiply<T, 0>(sums.at[tap], left[0], right);
        multiply<T, 1>(sums.at[tap], left[1], right);
      }
    }
    __syncthreads();  // dz and x are free
  }
  // The upper half of the groups leaves its sums to the lower half, until one has all.
  float* const left = reinterpret_cast<float*>(memory);
  const auto slot = [&](int of, int tap, int o, int i) {
    return left + of * kGroupSums + (tap * kWeightSlice + o) * kWeightSlice + column + i;
  };
  for (int half = kGroups / 2; half > 0; half /= 2) {
    if (group >= half && group < 2 * half) {
      sums.visit([&](int tap, int o, int i, float sum) { *slot(group - half, tap, o, i) = sum; });
    }
    __syncthreads();  // the sums of the upper half are complete
    if (group < half) sums.visit([&](int tap, int o, int i, float& sum) { sum += *slot(group, tap, o, i); });
    __syncthreads();  // they are free
  }
  if (group > 0) return;
  const bool alone = gridDim.x == 1;
  float* const partial = a.partial + int64_t(blockIdx.x) * s.in * s.out * kTaps;
  sums.visit([&](int tap, int o, int i, float sum) {
    const int at = ((to + o) * kTaps + tap) * s.in + from + column + i;
    if (alone) {
      a.dweight[at] = T(sum);
    } else {
      partial[at] = sum;
    }
  });
}

// dweight = the sums over the ranges; four threads share one of them, each a quarter of the ranges.
constexpr int kSharers = 4;
template <class T>
__global__ void __launch_bounds__(kBlock) conv3x3_sum_kernel(const float* partial, T* dweight, int size, int ranges) {
  const int at = int(blockIdx.x) * (kBlock / kSharers) + int(threadIdx.x) / kSharers, sharer = int(threadIdx.x) % kSharers;
  float sum =
      at < size ? sum_column(partial + int64_t(sharer) * size + at, size * kSharers, (ranges - sharer + kSharers - 1) / kSharers)
                : 0;
  for (int lanes = 1; lanes < kSharers; lanes *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (at < size && sharer == 0) dweight[at] = T(sum);
}

}  // namespace

template <class T>
bool conv3x3_fits(const Conv3x3Shape& s) {
  const auto fits = [](int channels) { return channels > 0 && channels <= 64 && channels % 16 == 0; };
  return fits(s.in) && fits(s.out) && s.positions() < (int64_t(1) << 30) && Layout::best<T>(s, s.in, s.out).bytes <= kMaxShared &&
         Layout::best<T>(s, s.out, s.in).bytes <= kMaxShared && WeightLayout::best<T>(s).bytes <= kMaxShared;
}

bool conv3x3_runs_here() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 8;
}

template <class T>
void conv3x3_forward(const Conv3x3Forward<T>& a, void* stream) {
  if (a.shape.pixels() == 0) return;
  const auto l = Layout::best<T>(a.shape, a.shape.in, a.shape.out);
  const dim3 grid(unsigned(l.blocks()), unsigned(a.shape.out / l.slice));
  if (l.slice == 32) {
    ADVNAS_LAUNCH((conv3x3_forward_kernel<T, 32>), grid, l.positions, l.bytes, stream)(a, l);
  } else {
    ADVNAS_LAUNCH((conv3x3_forward_kernel<T, 16>), grid, l.positions, l.bytes, stream)(a, l);
  }
}

template <class T>
void conv3x3_input(const Conv3x3Input<T>& a, void* stream) {
  if (a.shape.pixels() == 0) return;
  const auto l = Layout::best<T>(a.shape, a.shape.out, a.shape.in);
  const dim3 grid(unsigned(l.blocks()), unsigned(a.shape.in / l.slice));
  if (l.slice == 32) {
    ADVNAS_LAUNCH((conv3x3_input_kernel<T, 32>), grid, l.positions, l.bytes, stream)(a, l);
  } else {
    ADVNAS_LAUNCH((conv3x3_input_kernel<T, 16>), grid, l.positions, l.bytes, stream)(a, l);
  }
}

template <class T>
void conv3x3_weight(const Conv3x3Weight<T>& a, void* stream) {
  const auto l = WeightLayout::best<T>(a.shape);  // the gradient over no pixels is 0
  const dim3 grid(unsigned(l.ranges), unsigned((a.shape.in / kWeightSlice) * (a.shape.out / kWeightSlice)));
  ADVNAS_LAUNCH((conv3x3_weight_kernel<T>), grid, kBlock, l.bytes, stream)(a, l);
  if (l.ranges == 1) return;
  const int size = kTaps * a.shape.in * a.shape.out;
  ADVNAS_LAUNCH((conv3x3_sum_kernel<T>), unsigned(ceil_div(size, kBlock / kSharers)), kBlock, 0, stream)
  (a.partial, a.dweight, size, l.ranges);
}

int64_t conv3x3_statistics_workspace(const Conv3x3Shape& shape) { return kMaxBlocks * int64_t(1 + 2 * shape.out); }
template <class T>
int64_t conv3x3_weight_workspace(const Conv3x3Shape& s) {
  return WeightLayout::best<T>(s).ranges * int64_t(kTaps) * s.in * s.out;
}

#define ADVNAS_INSTANTIATE(T)                                        \
  template bool conv3x3_fits<T>(const Conv3x3Shape&);                \
  template void conv3x3_forward<T>(const Conv3x3Forward<T>&, void*); \
  template void conv3x3_input<T>(const Conv3x3Input<T>&, void*);     \
  template void conv3x3_weight<T>(const Conv3x3Weight<T>&, void*);   \
  template int64_t conv3x3_weight_workspace<T>(const Conv3x3Shape&);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
