// The interface of a fused ReLU-convolution edge: stride 1, the image keeps its size. conv3x3.h and conv1x1.h have the formulas.
//
//   forward    z  = conv(relu(x))                 with the mean and the spread of z per channel, for batch norm
//   backward   dz = of_dy dy + of_z z + constant  the gradient before batch norm (batch_norm_math.h), never stored as a whole
//              dx (+)= [x > 0] conv^T(dz)
//              dw += correlation of relu(x) and dz
//
// Images are [height, width, channels] in channels-last order, one after another. Kernels are serial and work on any number of
// images; they go through them in groups that fill the caches, so a caller that interleaves other work calls them with
// images_at_once images. The caller owns all memory. Weights, and their gradients while they are summed, are in a layout that
// only the kernels know (packed_size elements).
#pragma once

#include <cstdint>

namespace advnas {

struct ConvShape {
  int64_t height, width, in, out;
};

// Where element [out, in, row, column] of a weight lies, in elements.
struct WeightStrides {
  int64_t out, in, row, column;
};

// The sum over `images` images: mean [out], and m2 [out], the sum of squared distances from it.
struct ConvMoments {
  double *mean, *m2;
};

// dz = of_dy dy + of_z z + constant; coefficients [out].
template <class T>
struct ConvGradient {
  const T *dy, *z;  // [images, height, width, out]
  const T *of_dy, *of_z, *constant;
};

template <class T>
struct ConvKernels {
  // Elements of a packed weight or of a packed sum of its gradient.
  int64_t (*packed_size)(int64_t in, int64_t out);
  // Elements of workspace of forward and backward.
  int64_t (*workspace_size)(const ConvShape& shape);
  int64_t (*images_at_once)(const ConvShape& shape);

  // weight: element [0, 0, 0, 0].
  void (*pack)(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed);
  // The weight of conv^T, for the same weight of the forward pass: its input has `out` channels.
  void (*pack_transposed)(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed);

  // x: [images, height, width, in]; relu: whether x is rectified. z: [images, height, width, out].
  // moments: null pointers if not wanted.
  void (*forward)(const T* x, bool relu, const T* packed, T* z, const ConvMoments& moments, int64_t images,
                  const ConvShape& shape, T* workspace);
  // dx: null if not wanted, or what pack_transposed made in `transposed`; is added to if `accumulate`, else written.
  // dpacked: null if not wanted, or packed_size elements that are added to.
  void (*backward)(const ConvGradient<T>& gradient, const T* x, bool relu, const T* transposed, T* dx, bool accumulate,
                   T* dpacked, int64_t images, const ConvShape& shape, T* workspace);
  // dweight = the sum of `num` packed gradients, one after another, in their order.
  void (*unpack_gradient)(const T* dpacked, int64_t num, int64_t in, int64_t out, T* dweight, const WeightStrides& strides);
};

}  // namespace advnas
