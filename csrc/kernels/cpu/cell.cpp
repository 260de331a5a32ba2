// Bound by memory, so each image is read once and written once, row by row: a row of any operand (width * channels elements, some
// KB) stays in the first-level cache while every source is added to it. Within a row the lanes are channels, and a block of lanes
// keeps its coefficients in registers over all pixels.
//
// Sums over pixels are taken in T over runs of kRun pixels and then in double, so that the error does not grow with the image.
#include "../cell.h"

#include "channels.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

constexpr int64_t kRun = 64;

inline void add_to(double* sum, float v) { *sum += v; }
inline void add_to(double* sum, double v) { *sum += v; }
template <class V>
inline void add_to(double* sum, V v) {
  for (uint64_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum[i] += v[i];
}
inline double total(float v) { return v; }
inline double total(double v) { return v; }
template <class V>
inline double total(V v) {
  double sum = 0;
  for (uint64_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum += v[i];
  return sum;
}

template <class T>
inline T window(int64_t i, int64_t size) {
  return T((i > 0) + 1 + (i + 1 < size));
}

// One row of avg_pool_3x3 (mean over the pixels that exist), or of its transpose, into `out` [width, channels]. The count is a
// product of a count of rows and one of columns, so both are separable: forward divides after each sum, the transpose before.
// row: [width + 2, channels] of vertical sums with a zero pixel at both ends.
template <class T, bool kTransposed>
void pool_row(const T* in, int64_t h, const ImageShape& shape, T* row, T* out) {
  const int64_t width = shape.width, channels = shape.channels, stride = width * channels;
  const int64_t first = h > 0 ? h - 1 : 0, last = h + 1 < shape.height ? h + 1 : h;
  const T rows_here = T(1) / window<T>(h, shape.height);
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    store_as(row + c, zero);
    store_as(row + (width + 1) * channels + c, zero);
    for (int64_t w = 0; w < width; ++w) {
      V sum{};
      for (int64_t r = first; r <= last; ++r) {
        const V v = load_as<V>(in + r * stride + w * channels + c);
        sum += kTransposed ? v * (T(1) / window<T>(r, shape.height)) : v;
      }
      sum *= kTransposed ? T(1) / window<T>(w, width) : rows_here;
      store_as(row + (w + 1) * channels + c, sum);
    }
    for (int64_t w = 0; w < width; ++w) {
      const T* at = row + w * channels + c;
      const V sum = load_as<V>(at) + load_as<V>(at + channels) + load_as<V>(at + 2 * channels);
      store_as(out + w * channels + c, kTransposed ? sum : sum * (T(1) / window<T>(w, width)));
    }
  });
}

}  // namespace

template <class T>
void node_forward(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* row) {
  const int64_t width = shape.width, channels = shape.channels;
  T* pooled = row + (width + 2) * channels;
  for (int64_t h = 0; h < shape.height; ++h) {
    const int64_t offset = h * width * channels;
    T* out = y + offset;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const V b = load_as<V>(bias + c);
      for (int64_t w = 0; w < width; ++w) store_as(out + w * channels + c, b);
      for (int64_t k = 0; k < sources.num_scaled; ++k) {
        const T* in = sources.scaled[k] + offset + c;
        const V scale = load_as<V>(sources.scale[k] + c);
        for (int64_t w = 0; w < width; ++w) {
          T* at = out + w * channels + c;
          store_as(at, load_as<V>(at) + scale * load_as<V>(in + w * channels));
        }
      }
    });
    for (int64_t p = 0; p < sources.num_pooled; ++p) {
      pool_row<T, false>(sources.pooled[p], h, shape, row, pooled);
      const T gate = sources.pooled_gate[p];
      for (int64_t i = 0; i < width * channels; ++i) out[i] += gate * pooled[i];
    }
  }
}

template <class T>
void node_backward(const Sources<T>& sources, const T* x, T* dx, double* scaled_gate_grad, double* pooled_gate_grad,
                   const ImageShape& shape, T* row) {
  const int64_t width = shape.width, channels = shape.channels;
  T* pooled = row + (width + 2) * channels;
  for (int64_t h = 0; h < shape.height; ++h) {
    const int64_t offset = h * width * channels;
    T* out = dx + offset;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      for (int64_t w = 0; w < width; ++w) store_as(out + w * channels + c, zero);
      for (int64_t k = 0; k < sources.num_scaled; ++k) {
        const V scale = load_as<V>(sources.scale[k] + c);
        V product{};
        for (int64_t w = 0; w < width; ++w) {
          const int64_t at = w * channels + c;
          const V dy = load_as<V>(sources.scaled[k] + offset + at);
          if (scaled_gate_grad != nullptr) product += dy * load_as<V>(x + offset + at);
          store_as(out + at, load_as<V>(out + at) + scale * dy);
        }
        if (scaled_gate_grad != nullptr) scaled_gate_grad[k] += total(product);
      }
    });
    for (int64_t p = 0; p < sources.num_pooled; ++p) {
      pool_row<T, true>(sources.pooled[p], h, shape, row, pooled);
      const T gate = sources.pooled_gate[p];
      for (int64_t i = 0; i < width * channels; ++i) out[i] += gate * pooled[i];
      if (pooled_gate_grad == nullptr) continue;
      for_channels<T>(channels, [&](int64_t c, auto zero) {
        using V = decltype(zero);
        V product = zero;
        for (int64_t w = 0; w < width; ++w) {
          product += load_as<V>(pooled + w * channels + c) * load_as<V>(x + offset + w * channels + c);
        }
        pooled_gate_grad[p] += total(product);
      });
    }
  }
}

// The distance is taken from the image's first pixel: sums of squares about 0 cancel where the mean is large beside the spread.
template <class T>
void channel_moments(const T* z, int64_t pixels, int64_t channels, double* mean, double* m2) {
  for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
  for (int64_t first = 0; first < pixels; first += kRun) {
    const int64_t last = first + kRun < pixels ? first + kRun : pixels;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const V origin = load_as<V>(z + c);
      V sum = zero, squares = zero;
      for (int64_t i = first; i < last; ++i) {
        const V v = load_as<V>(z + i * channels + c) - origin;
        sum += v;
        squares += v * v;
      }
      add_to(mean + c, sum);
      add_to(m2 + c, squares);
    });
  }
  for (int64_t c = 0; c < channels && pixels > 0; ++c) {
    const double offset = mean[c] / double(pixels);
    m2[c] -= offset * mean[c];
    if (m2[c] < 0) m2[c] = 0;  // rounding; a NaN stays
    mean[c] = double(z[c]) + offset;
  }
}

template <class T>
void node_sums(const T* dy, const T* const* z, const T* const* mean, int64_t num, int64_t pixels, int64_t channels, double* s1,
               double* const* s2) {
  for (int64_t c = 0; c < channels; ++c) s1[c] = 0;
  for (int64_t k = 0; k < num; ++k) {
    for (int64_t c = 0; c < channels; ++c) s2[k][c] = 0;
  }
  for (int64_t first = 0; first < pixels; first += kRun) {
    const int64_t last = first + kRun < pixels ? first + kRun : pixels;
    for_channels<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      V sum = zero;
      for (int64_t i = first; i < last; ++i) sum += load_as<V>(dy + i * channels + c);
      add_to(s1 + c, sum);
      for (int64_t k = 0; k < num; ++k) {
        const V center = load_as<V>(mean[k] + c);
        V product = zero;
        for (int64_t i = first; i < last; ++i) {
          product += load_as<V>(dy + i * channels + c) * (load_as<V>(z[k] + i * channels + c) - center);
        }
        add_to(s2[k] + c, product);
      }
    });
  }
}

template <class T>
void fill_cell(Kernels<T>* table) {
  table->node_forward = node_forward<T>;
  table->node_backward = node_backward<T>;
  table->channel_moments = channel_moments<T>;
  table->node_sums = node_sums<T>;
}
template void fill_cell(Kernels<float>*);
template void fill_cell(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
