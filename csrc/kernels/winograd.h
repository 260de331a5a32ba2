// 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray, CVPR 2016): a quarter of the multiplications of
// convolution.h.
//
//   forward           y_tile = A^T [ U * (B^T d B) ] A,      U = G g G^T
//   weight gradient   dg     = G^T [ sum over tiles (B^T d B) * (A dy_tile A^T) ] G
//
// d: a 6x6 patch of the frame, y_tile: 4x4 pixels; * is a product for each of the 36 places, a matrix product over the channels.
// The interpolation points are 0, 1, -1, 2, -2 and infinity. Frames are those of convolution.h, whose sides are rounded up to
// whole tiles. The input gradient is the forward sum over dz with the rotated weight, as there.
#pragma once

#include <cstdint>

#include "convolution.h"
#include "host_device.h"

namespace advnas {

inline constexpr int64_t kWinogradPlaces = 36;

// Tiles are taken in strips that stay in the cache between the three stages: 36 places of this many values, in and out.
inline constexpr int64_t kStripValues = 1024;

ADVNAS_HOST_DEVICE inline int64_t tiles_along(int64_t side) { return (side + 3) / 4; }

// Tiles of a strip; those of several images follow each other.
ADVNAS_HOST_DEVICE inline int64_t strip_tiles(const ConvolutionShape& shape) {
  const int64_t channels = shape.in > shape.out ? shape.in : shape.out;
  return channels < kStripValues ? kStripValues / channels : 1;
}

// How many images fill a strip.
ADVNAS_HOST_DEVICE inline int64_t strip_images(const ConvolutionShape& shape) {
  const int64_t images = strip_tiles(shape) / (tiles_along(shape.height) * tiles_along(shape.width));
  return images < 1 ? 1 : images;
}

// From one place of a strip to the next: a constant that the compiler knows, unless a single tile has more channels than that.
// The last term keeps places out of each other's cache sets.
inline constexpr int64_t kPlaceStride = kStripValues + 16;
ADVNAS_HOST_DEVICE inline int64_t place_stride(const ConvolutionShape& shape) {
  const int64_t channels = shape.in > shape.out ? shape.in : shape.out;
  return channels <= kStripValues ? kPlaceStride : channels + 16;
}

// Elements of workspace.
ADVNAS_HOST_DEVICE inline int64_t winograd_workspace(const ConvolutionShape& shape) {
  return 2 * kWinogradPlaces * place_stride(shape);
}

// From one place of a weight of `taps` = in * out values to the next. Usual numbers of channels are powers of two: without the
// last term all places would meet in the same cache sets.
ADVNAS_HOST_DEVICE inline int64_t weight_place(int64_t taps) { return taps + 16; }

// u [36, weight_place(in * out)] from the packed weight [3, 3, in, out]; `count` values of in * out, from `first` on.
template <class T>
using WinogradWeight = void(const T* weight, T* u, int64_t taps, int64_t first, int64_t count);

// y[k] [images, height, width, out] with the weight u[k], of each of `num` convolutions of the same frames.
template <class T>
using WinogradConvolve = void(const T* frames, const T* const* u, T* const* y, int64_t num, const ConvolutionShape& shape,
                              int64_t images, T* workspace);

// du[k] [36, weight_place(in * out)] = the sums over `frames` and dz_frames[k], or += with `add`.
template <class T>
using WinogradWeightGradient = void(const T* frames, const T* const* dz_frames, T* const* du, int64_t num,
                                    const ConvolutionShape& shape, int64_t images, bool add, T* workspace);

// dweight [3, 3, in, out] = G^T du G; `count` values of in * out, from `first` on.
template <class T>
using WinogradFinish = void(const T* du, T* dweight, int64_t taps, int64_t first, int64_t count);

}  // namespace advnas
