// Lanes are channels; a block of lanes of one row of pixels is added to tap by tap, in the first-level cache.
#include "../depthwise.h"

#include <cstring>

#include "../convolution.h"
#include "channels.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

// Calls body(at the row's first tap in its frame, where the row begins in the outputs) for every row of output pixels.
template <class T, class Body>
inline void for_rows(const T* frames, const DepthwiseShape& shape, int64_t images, const Body& body) {
  const auto [height, width, channels] = shape.output();
  const int64_t row = frame_side(shape.image.width, shape.extent()) * channels;
  const int64_t frame = frame_elements(shape.image, shape.extent());
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t h = 0; h < height; ++h) body(frames + n * frame + shape.stride * h * row, (n * height + h) * width * channels);
  }
}

// From the first tap to tap (r, s), in a frame.
inline int64_t tap_offset(const DepthwiseShape& shape, int64_t r, int64_t s) {
  return shape.dilation * (r * frame_side(shape.image.width, shape.extent()) + s) * shape.image.channels;
}

// Of four pixels of a row. Named, since an array of accumulators would be spilled.
template <class V>
struct Four {
  V a, b, c, d;
};

// They share the loads of the weight.
template <class V, class T>
[[gnu::always_inline]] inline Four<V> four_pixels(const T* taps, const T* weight, const DepthwiseShape& shape, int64_t step,
                                                  V zero) {
  V a = zero, b = zero, c = zero, d = zero;
  for (int64_t r = 0; r < shape.size; ++r) {
    for (int64_t s = 0; s < shape.size; ++s) {
      const T* const at = taps + tap_offset(shape, r, s);
      const V of_tap = load_as<V>(weight + (r * shape.size + s) * shape.image.channels);
      a += load_as<V>(at) * of_tap;
      b += load_as<V>(at + step) * of_tap;
      c += load_as<V>(at + 2 * step) * of_tap;
      d += load_as<V>(at + 3 * step) * of_tap;
    }
  }
  return {a, b, c, d};
}

// Where the pixels are as far apart as the taps they share the loads of both: what is the second tap of one is the first of the
// next.
template <class V, class T>
[[gnu::always_inline]] inline Four<V> four_neighbours(const T* taps, const T* weight, const DepthwiseShape& shape, V zero) {
  const int64_t step = tap_offset(shape, 0, 1), channels = shape.image.channels;
  V a = zero, b = zero, c = zero, d = zero;
  for (int64_t r = 0; r < shape.size; ++r) {
    const T* const row = taps + tap_offset(shape, r, 0);
    V first = load_as<V>(row), second = load_as<V>(row + step), third = load_as<V>(row + 2 * step);
    for (int64_t s = 0; s < shape.size; ++s) {
      const V of_tap = load_as<V>(weight + (r * shape.size + s) * channels), fourth = load_as<V>(row + (s + 3) * step);
      a += first * of_tap;
      b += second * of_tap;
      c += third * of_tap;
      d += fourth * of_tap;
      first = second;
      second = third;
      third = fourth;
    }
  }
  return {a, b, c, d};
}

}  // namespace

template <class T>
void depthwise(const T* frames, const T* weight, T* y, const DepthwiseShape& shape, int64_t images) {
  const int64_t width = shape.output().width, channels = shape.image.channels, step = shape.stride * channels;
  for_rows(frames, shape, images, [&](const T* in, int64_t begin) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      T* const out = y + begin + c;
      int64_t w = 0;
      const auto put = [&](const Four<V>& sums, int64_t first, int64_t apart) {
        store_as(out + first * channels, sums.a);
        store_as(out + (first + apart) * channels, sums.b);
        store_as(out + (first + 2 * apart) * channels, sums.c);
        store_as(out + (first + 3 * apart) * channels, sums.d);
      };
      // Pixels that are as far apart as taps, if there are such.
      const int64_t apart = shape.dilation % shape.stride == 0 ? shape.dilation / shape.stride : 0;
      for (; apart > 0 && w + 4 * apart <= width; w += 4 * apart) {
        for (int64_t first = w; first < w + apart; ++first) {
          put(four_neighbours(in + first * step + c, weight + c, shape, zero), first, apart);
        }
      }
      for (; w + 4 <= width; w += 4) put(four_pixels(in + w * step + c, weight + c, shape, step, zero), w, 1);
      for (; w < width; ++w) {
        V sum = zero;
        for (int64_t r = 0; r < shape.size; ++r) {
          for (int64_t s = 0; s < shape.size; ++s) {
            sum += load_as<V>(in + tap_offset(shape, r, s) + w * step + c) *
                   load_as<V>(weight + (r * shape.size + s) * channels + c);
          }
        }
        store_as(out + w * channels, sum);
      }
    });
  });
}

template <class T>
void depthwise_weight_gradient(const T* frames, const T* dy, T* dweight, const DepthwiseShape& shape, int64_t images, bool add) {
  const int64_t width = shape.output().width, channels = shape.image.channels, step = shape.stride * channels;
  for_rows(frames, shape, images, [&](const T* in, int64_t begin) {
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const T* const out = dy + begin + c;
      const bool starts = !add && begin == 0;
      const auto put = [&](T* to, V sum) { store_as(to, starts ? sum : sum + load_as<V>(to)); };
      for (int64_t r = 0; r < shape.size; ++r) {
        T* const to = dweight + r * shape.size * channels + c;
        const T* const taps = in + tap_offset(shape, r, 0) + c;
        const int64_t next = shape.dilation * channels;
        int64_t s = 0;
        for (; s + 3 <= shape.size; s += 3) {  // three taps share a load of the gradient
          T* const first = to + s * channels;
          const T* const from = taps + s * next;
          V a = zero, b = zero, d = zero;  // accumulators that begin with what was loaded would be spilled
          for (int64_t w = 0; w < width; ++w) {
            const V gradient = load_as<V>(out + w * channels);
            a += load_as<V>(from + w * step) * gradient;
            b += load_as<V>(from + w * step + next) * gradient;
            d += load_as<V>(from + w * step + 2 * next) * gradient;
          }
          put(first, a);
          put(first + channels, b);
          put(first + 2 * channels, d);
        }
        for (; s < shape.size; ++s) {
          V sum = zero;
          for (int64_t w = 0; w < width; ++w) {
            sum += load_as<V>(taps + s * next + w * step) * load_as<V>(out + w * channels);
          }
          put(to + s * channels, sum);
        }
      }
    });
  });
}

template <class T>
void depthwise_spread(const T* dy, T* frames, const DepthwiseShape& shape, int64_t images) {
  const auto [height, width, channels] = shape.output();
  const int64_t border = shape.extent() / 2, side = frame_side(shape.image.width, shape.extent());
  const int64_t frame = frame_elements(shape.image, shape.extent());
  const int64_t run = shape.stride == 1 ? width : 1;  // pixels that stay together
  std::memset(frames, 0, size_t(images * frame) * sizeof(T));
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t h = 0; h < height; ++h) {
      T* const row = frames + n * frame + ((border + shape.stride * h) * side + border) * channels;
      const T* const from = dy + (n * height + h) * width * channels;
      for (int64_t w = 0; w < width; w += run) {
        std::memcpy(row + shape.stride * w * channels, from + w * channels, size_t(run * channels) * sizeof(T));
      }
    }
  }
}

template <class T>
void fill_depthwise(Kernels<T>* table) {
  table->depthwise = depthwise<T>;
  table->depthwise_weight_gradient = depthwise_weight_gradient<T>;
  table->depthwise_spread = depthwise_spread<T>;
}
template void fill_depthwise(Kernels<float>*);
template void fill_depthwise(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
