// Lanes are channels; a block of lanes of one row of pixels is added to tap by tap, in the first-level cache.
#include "../depthwise.h"

#include "../convolution.h"
#include "channels.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

// Calls body(at the row's first tap in its frame, where the row begins in the images) for every row of pixels.
template <class T, class Body>
inline void for_rows(const T* frames, const DepthwiseShape& shape, int64_t images, const Body& body) {
  const auto [height, width, channels] = shape.image;
  const int64_t row = frame_side(width, shape.extent()) * channels, frame = frame_elements(shape.image, shape.extent());
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t h = 0; h < height; ++h) body(frames + n * frame + h * row, (n * height + h) * width * channels);
  }
}

// From the first tap to tap (r, s), in a frame.
inline int64_t tap_offset(const DepthwiseShape& shape, int64_t r, int64_t s) {
  return shape.dilation * (r * frame_side(shape.image.width, shape.extent()) + s) * shape.image.channels;
}

}  // namespace

template <class T>
void depthwise(const T* frames, const T* weight, T* y, const DepthwiseShape& shape, int64_t images) {
  const int64_t width = shape.image.width, channels = shape.image.channels;
  for_rows(frames, shape, images, [&](const T* in, int64_t begin) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      for (int64_t w = 0; w < width; ++w) {
        V sum = zero;
        for (int64_t r = 0; r < shape.size; ++r) {
          for (int64_t s = 0; s < shape.size; ++s) {
            sum += load_as<V>(in + tap_offset(shape, r, s) + w * channels + c) *
                   load_as<V>(weight + (r * shape.size + s) * channels + c);
          }
        }
        store_as(y + begin + w * channels + c, sum);
      }
    });
  });
}

template <class T>
void depthwise_weight_gradient(const T* frames, const T* dy, T* dweight, const DepthwiseShape& shape, int64_t images, bool add) {
  const int64_t width = shape.image.width, channels = shape.image.channels;
  for_rows(frames, shape, images, [&](const T* in, int64_t begin) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      for (int64_t r = 0; r < shape.size; ++r) {
        for (int64_t s = 0; s < shape.size; ++s) {
          T* const to = dweight + (r * shape.size + s) * channels + c;
          const T* const taps = in + tap_offset(shape, r, s) + c;
          V sum = add || begin > 0 ? load_as<V>(to) : zero;
          for (int64_t w = 0; w < width; ++w) {
            sum += load_as<V>(taps + w * channels) * load_as<V>(dy + begin + w * channels + c);
          }
          store_as(to, sum);
        }
      }
    });
  });
}

template <class T>
void fill_depthwise(Kernels<T>* table) {
  table->depthwise = depthwise<T>;
  table->depthwise_weight_gradient = depthwise_weight_gradient<T>;
}
template void fill_depthwise(Kernels<float>*);
template void fill_depthwise(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
