// 3x3 convolution by Winograd's F(4x4, 3x3) (Lavin & Gray, CVPR 2016): a quarter of the multiplications of convolution.h, for one
// image.
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

// Tiles are taken in strips of whole rows of tiles, about this many, so that a strip stays in the cache between its three stages.
inline constexpr int64_t kStripTiles = 24;

ADVNAS_HOST_DEVICE inline int64_t winograd_rows_of_tiles(const ConvolutionShape& shape) {
  const int64_t rows = (shape.height + 3) / 4, columns = (shape.width + 3) / 4;
  const int64_t wanted = columns > kStripTiles ? 1 : kStripTiles / columns;
  return wanted < rows ? wanted : rows;
}

// Elements of workspace of both kernels.
inline int64_t winograd_workspace(const ConvolutionShape& shape) {
  return kWinogradPlaces * winograd_rows_of_tiles(shape) * ((shape.width + 3) / 4) * (shape.in + shape.out);
}

// u [36, in, out] from the packed weight [3, 3, in, out].
template <class T>
using WinogradWeight = void(const T* weight, T* u, int64_t in, int64_t out);

// y [height, width, out].
template <class T>
using WinogradConvolve = void(const T* frame, const T* u, T* y, const ConvolutionShape& shape, T* workspace);

// du [36, in, out] += the sums over both frames.
template <class T>
using WinogradWeightGradient = void(const T* frame, const T* dz_frame, T* du, const ConvolutionShape& shape, T* workspace);

// dweight [3, 3, in, out] = G^T du G.
template <class T>
using WinogradFinish = void(const T* du, T* dweight, int64_t in, int64_t out);

}  // namespace advnas
