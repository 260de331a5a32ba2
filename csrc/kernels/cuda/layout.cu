// A square goes through shared memory, so that reads and writes are both of neighbouring addresses.
#include "../layout.h"
#include "device.cuh"

namespace advnas::cuda {
namespace {

constexpr int kSide = 32, kHeight = kBlock / kSide;

template <class T>
__global__ void __launch_bounds__(kBlock) to_channels_last_kernel(const T* x, T* y, T* relu_of_y, int channels, int pixels) {
  ADVNAS_DYNAMIC_SHARED(memory);
  float* const square = reinterpret_cast<float*>(memory);  // [kSide, kSide + 1]: the odd width spreads a column over the banks
  const int across = int(threadIdx.x) % kSide, down = int(threadIdx.x) / kSide;
  const int pixel = int(blockIdx.x) * kSide, channel = int(blockIdx.y) * kSide;
  const int64_t image = int64_t(blockIdx.z) * channels * pixels;
  for (int row = down; row < kSide; row += kHeight) {
    if (channel + row < channels && pixel + across < pixels) {
      square[row * (kSide + 1) + across] = float(x[image + int64_t(channel + row) * pixels + pixel + across]);
    }
  }
  __syncthreads();  // the square is complete
  for (int row = down; row < kSide; row += kHeight) {
    if (channel + across >= channels || pixel + row >= pixels) continue;
    const float value = square[across * (kSide + 1) + row];
    const int64_t at = image + int64_t(pixel + row) * channels + channel + across;
    if (y != nullptr) y[at] = T(value);
    if (relu_of_y != nullptr) relu_of_y[at] = T(relu(value));
  }
}

constexpr int kMaxImages = 65535;  // of a launch, in gridDim.z

}  // namespace

template <class T>
void to_channels_last(const T* x, T* y, T* relu, const Images& shape, void* stream) {
  if (shape.size() == 0) return;
  const int pixels = shape.height * shape.width;
  for (int first = 0; first < shape.batch; first += kMaxImages) {
    const int64_t at = int64_t(first) * pixels * shape.channels;
    const dim3 grid((pixels + kSide - 1) / kSide, (shape.channels + kSide - 1) / kSide,
                    shape.batch - first < kMaxImages ? shape.batch - first : kMaxImages);
    ADVNAS_LAUNCH((to_channels_last_kernel<T>), grid, kBlock, kSide * (kSide + 1) * int(sizeof(float)), stream)
    (x + at, y != nullptr ? y + at : nullptr, relu != nullptr ? relu + at : nullptr, shape.channels, pixels);
  }
}

#define ADVNAS_INSTANTIATE(T) template void to_channels_last<T>(const T*, T*, T*, const Images&, void*);
ADVNAS_INSTANTIATE(float)
ADVNAS_INSTANTIATE(__half)
ADVNAS_INSTANTIATE(__nv_bfloat16)

}  // namespace advnas::cuda
