// Pixels are taken in blocks of which the operands fit the first-level cache together with a panel of the weight. A block is
// first copied, rectified or turned into dz on the way; then kRows pixels times a panel of outputs at a time are summed in
// registers over the input channels. The weight gradient keeps kRows input channels times a panel in registers over the pixels of
// a block.
#include "../conv1x1.h"

#include "conv_output.h"
#include "conv_product.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

constexpr int64_t kBlockBytes = 16384;

// A multiple of kRows.
template <class T>
int64_t block_pixels(const ConvShape& shape) {
  const int64_t bytes = (pad_to_lanes<T>(shape.in) + pad_to_lanes<T>(shape.out)) * int64_t(sizeof(T));
  const int64_t rows = bytes > 0 ? kBlockBytes / (bytes * kRows) : 1;
  return kRows * (rows < 2 ? 2 : rows);
}

template <class T>
struct Buffers {
  T *x, *dz, *sums;
  int64_t size = kLine<T>;  // for the alignment

  Buffers(const ConvShape& shape, T* workspace) {
    T* next = align(workspace);
    const auto take = [&](int64_t elements) {
      T* const taken = next;
      const int64_t whole = (elements + kLine<T> - 1) / kLine<T> * kLine<T>;
      next += whole;
      size += whole;
      return taken;
    };
    x = take(block_pixels<T>(shape) * pad_to_lanes<T>(shape.in));
    dz = take(block_pixels<T>(shape) * pad_to_lanes<T>(shape.out));
    sums = take(3 * pad_to_lanes<T>(shape.out));
  }
};

template <class T>
int64_t packed_size(int64_t in, int64_t out) {
  return in * pad_to_lanes<T>(out);
}

// Panels [panel, in, width].
template <class T>
void pack(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed) {
  for_panels<T>(out, [&](int64_t first, auto vectors) {
    constexpr int64_t width = decltype(vectors)::value * kLanes<T>;
    T* const panel = packed + in * first;
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t o = 0; o < width; ++o) {
        panel[i * width + o] = first + o < out ? weight[(first + o) * strides.out + i * strides.in] : T(0);
      }
    }
  });
}

template <class T>
void pack_transposed(const T* weight, const WeightStrides& strides, int64_t in, int64_t out, T* packed) {
  pack(weight, {strides.in, strides.out, 0, 0}, out, in, packed);
}

template <class T>
void unpack_gradient(const T* dpacked, int64_t num, int64_t in, int64_t out, T* dweight, const WeightStrides& strides) {
  for_panels<T>(out, [&](int64_t first, auto vectors) {
    constexpr int64_t width = decltype(vectors)::value * kLanes<T>;
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t o = 0; o < width && first + o < out; ++o) {
        T sum = 0;
        for (int64_t k = 0; k < num; ++k) sum += dpacked[k * packed_size<T>(in, out) + in * first + i * width + o];
        dweight[(first + o) * strides.out + i * strides.in] = sum;
      }
    }
  });
}

// a: [pixels, pad_to_lanes(in)], the pixels from `pixel` on.
template <class T, class Output>
void multiply_pixels(const T* a, int64_t in, int64_t pixel, int64_t pixels, const T* packed, Output& output) {
  const int64_t padded = pad_to_lanes<T>(in), out = output.channels();
  const Split groups(pixels, kRows);
  for_panels<T>(out, [&](int64_t column, auto vectors) {
    constexpr int kN = decltype(vectors)::value;
    constexpr int64_t width = kN * kLanes<T>;
    const T* const panel = packed + in * column;
    const auto zero = [](int, int) ADVNAS_INLINE { return Vec<T>{}; };
    if (pixel == 0) {
      multiply<1, kN, false>(a, padded, panel, width, in, zero,
                             [&](int, int n, Vec<T> v) { output.set_origin(column + n * kLanes<T>, v); });
    }
    auto lanes0 = output.lanes(column), lanes1 = output.lanes(column + (kN - 1) * kLanes<T>);
    const int64_t part = out - column - (kN - 1) * kLanes<T>;  // of the last vector
    for (int64_t g = 0; g < groups.parts; ++g) {
      const int64_t first = groups.begin(g);
      const int64_t offset = (pixel + first) * out;
      with_constant<kRows>(groups.begin(g + 1) - first, [&](auto rows) {
        multiply<decltype(rows)::value, kN, false>(a + first * padded, padded, panel, width, in, zero,
                                                   [&](int m, int n, Vec<T> v) ADVNAS_INLINE {
                                                     if (n + 1 < kN) {
                                                       lanes0.put(offset + m * out, v);
                                                     } else if (part >= kLanes<T>) {
                                                       lanes1.put(offset + m * out, v);
                                                     } else {
                                                       lanes1.put_part(offset + m * out, v, part);
                                                     }
                                                   });
      });
    }
    if constexpr (kN > 1) lanes0.finish();
    lanes1.finish();
  });
  output.flush();
}

template <class T>
void add_weight_gradient(const Buffers<T>& buffers, int64_t pixels, const ConvShape& shape, T* dpacked) {
  const int64_t in = shape.in;
  const Split rows(in, kRows);
  for_panels<T>(shape.out, [&](int64_t column, auto vectors) {
    constexpr int kN = decltype(vectors)::value;
    constexpr int64_t width = kN * kLanes<T>;
    for (int64_t r = 0; r < rows.parts; ++r) {
      const int64_t i = rows.begin(r);
      T* const sums = dpacked + in * column + i * width;
      with_constant<kRows>(rows.begin(r + 1) - i, [&](auto count) {
        multiply<decltype(count)::value, kN, true>(
            buffers.x + i, pad_to_lanes<T>(in), buffers.dz + column, pad_to_lanes<T>(shape.out), pixels,
            [&](int m, int n) ADVNAS_INLINE { return load(sums + m * width + n * kLanes<T>); },
            [&](int m, int n, Vec<T> v) ADVNAS_INLINE { store(sums + m * width + n * kLanes<T>, v); });
      });
    }
  });
}

template <class T, class Body>
void for_blocks(int64_t pixels, const ConvShape& shape, const Body& body) {
  const Split blocks(pixels, block_pixels<T>(shape));
  for (int64_t b = 0; b < blocks.parts; ++b) body(blocks.begin(b), blocks.begin(b + 1) - blocks.begin(b));
}

template <class T>
void forward(const T* x, bool relu, const T* packed, T* z, const ConvMoments& moments, int64_t images, const ConvShape& shape,
             T* workspace) {
  const Buffers<T> buffers(shape, workspace);
  const int64_t pixels = images * shape.height * shape.width;
  MomentsOutput<T> output(z, moments, shape.out, buffers.sums);
  for_blocks<T>(pixels, shape, [&](int64_t first, int64_t count) {
    read_rectified(x + first * shape.in, relu_floor<T>(relu), count, shape.in, buffers.x);
    multiply_pixels(buffers.x, shape.in, first, count, packed, output);
  });
  output.finish(pixels);
}

template <class T>
void backward(const ConvGradient<T>& gradient, const T* x, bool relu, const T* transposed, T* dx, bool accumulate, T* dpacked,
              int64_t images, const ConvShape& shape, T* workspace) {
  const Buffers<T> buffers(shape, workspace);
  for_blocks<T>(images * shape.height * shape.width, shape, [&](int64_t first, int64_t count) {
    read_gradient(gradient, first, count, shape.out, buffers.dz);
    if (dx != nullptr && accumulate) {
      InputGradientOutput<T, true> output(x, relu, dx, shape.in);
      multiply_pixels(buffers.dz, shape.out, first, count, transposed, output);
    } else if (dx != nullptr) {
      InputGradientOutput<T, false> output(x, relu, dx, shape.in);
      multiply_pixels(buffers.dz, shape.out, first, count, transposed, output);
    }
    if (dpacked == nullptr) return;
    read_rectified(x + first * shape.in, relu_floor<T>(relu), count, shape.in, buffers.x);
    add_weight_gradient(buffers, count, shape, dpacked);
  });
}

template <class T>
int64_t workspace_size(const ConvShape& shape) {
  return Buffers<T>(shape, nullptr).size;
}

int64_t images_at_once(const ConvShape&) { return 1; }

}  // namespace

template <class T>
ConvKernels<T> conv1x1_kernels() {
  return {packed_size<T>,     workspace_size<T>, images_at_once, pack<T>,
          pack_transposed<T>, forward<T>,        backward<T>,    unpack_gradient<T>};
}
template ConvKernels<float> conv1x1_kernels();
template ConvKernels<double> conv1x1_kernels();

}  // namespace advnas::cpu::ADVNAS_ISA
