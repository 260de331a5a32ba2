// Bound by memory, so each image is read once and written once, pixel by pixel in the order of the memory; pooled rows are made
// in the first-level cache first. Sums over pixels are taken in T over a row or a run of pixels (sums.h) and then in double.
#include "../cell.h"

#include "../pool_math.h"
#include "channels.h"
#include "isa.h"
#include "sums.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

inline double total(float v) { return v; }
inline double total(double v) { return v; }
template <class V>
inline double total(V v) {
  double sum = 0;
  for (uint64_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum += v[i];
  return sum;
}
template <class T>
inline double total(const Pair<T>& v) {
  return total(v.first) + total(v.second);
}

template <class T>
inline T window(int64_t i, int64_t size) {
  return T(pool_window(i, size));
}

// One row of avg_pool_3x3 (mean over the pixels that exist), or of its transpose, into `out` [width, channels]. The count is a
// product of a count of rows and one of columns, so both are separable: sums of three pixels down, and of three of those across
// that stay in registers. Forward divides after each sum, the transpose before. All pixels are divided by 3 columns, and what
// belongs to the two at the ends is corrected.
template <class T, bool kTransposed>
void pool_row(const T* in, int64_t h, const ImageShape& shape, T* out) {
  const int64_t width = shape.width, channels = shape.channels, size = width * channels;
  T factor[3];  // of the rows above, here and below
  for (int64_t r = 0; r < 3; ++r) factor[r] = T(1) / (3 * window<T>(kTransposed ? h + r - 1 : h, shape.height));
  if (h == 0) factor[0] = 0;
  if (h + 1 == shape.height) factor[2] = 0;
  const T* const here = in + h * size;
  const T* const above = h == 0 ? here : here - size;
  const T* const below = h + 1 == shape.height ? here : here + size;
  const T end = T(3) / window<T>(0, width), before = kTransposed ? end : T(1), after = kTransposed ? T(1) : end;
  for_lines<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const auto down = [&](int64_t i) {
      return load_as<V>(above + i) * factor[0] + load_as<V>(here + i) * factor[1] + load_as<V>(below + i) * factor[2];
    };
    const int64_t last = size - channels + c;
    V left = zero, middle = down(c) * before;
    const auto add_right = [&](int64_t i, V right) {
      store_as(out + i, left + middle + right);
      left = middle;
      middle = right;
    };
    for (int64_t i = c; i < last - channels; i += channels) add_right(i, down(i + channels));
    if (width > 1) {
      add_right(last - channels, down(last) * before);
      store_as(out + c, load_as<V>(out + c) * after);
    }
    store_as(out + last, (left + middle) * after);
  });
}

// What a row of sources is added to: a bias for each channel, nothing, or what is in `out` already.
enum class Start { kBias, kZero, kOut };

// out [width, channels] = start + sum_k scale_k in_k for kNum sources, and product_k += sum in_k x unless x is null.
template <int kNum, bool kProducts, Start kStart, class T>
void combine(const T* const* in, const T* const* scale, const T* bias, T* out, int64_t width, int64_t channels, const T* x,
             double* product) {
  const T *source[kNum], *factor[kNum];  // on the stack: no store can change them
  for (int k = 0; k < kNum; ++k) {
    source[k] = in[k];
    factor[k] = scale[k];
  }
  const auto walk = [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V times[kNum], products[kNum];
    for (int k = 0; k < kNum; ++k) {
      times[k] = load_as<V>(factor[k] + c);
      products[k] = zero;
    }
    const V begin = kStart == Start::kBias ? load_as<V>(bias + c) : zero;
    for (int64_t at = c; at < width * channels; at += channels) {
      V sum = kStart == Start::kOut ? load_as<V>(out + at) : begin;
#pragma GCC unroll 4
      for (int k = 0; k < kNum; ++k) {
        const V value = load_as<V>(source[k] + at);
        sum += value * times[k];
        if constexpr (kProducts) products[k] += value * load_as<V>(x + at);
      }
      store_as(out + at, sum);
    }
    for (int k = 0; kProducts && k < kNum; ++k) product[k] += total(products[k]);
  };
  if constexpr (kProducts && kNum > 2) {
    for_channels<T>(channels, walk);  // no registers for more
  } else {
    for_lines<T>(channels, walk);
  }
}

constexpr int kMost = 4;

// The sources of a node, row by row: pooled ones are pooled on the way.
template <class T>
class Rows {
 public:
  Rows(const Sources<T>& sources, const ImageShape& shape, T* workspace) : sources_(sources), shape_(shape), pooled_(workspace) {}

  template <bool kTransposed>
  void go_to(int64_t h) {
    h_ = h;
    for (int64_t k = 0; k < sources_.num; ++k) {
      if (sources_.pooled[k]) pool_row<T, kTransposed>(sources_.image[k], h, shape_, pooled_row(k));
    }
  }

  // kMost sources at a time. bias may be null.
  void add_up(const T* bias, T* out, const T* x, double* product) const {
    if (sources_.num == 0) return fill(bias, out);
    Start start = bias != nullptr ? Start::kBias : Start::kZero;
    for (int64_t first = 0; first < sources_.num; first += kMost, start = Start::kOut) {
      const T* rows[kMost];
      const int64_t num = sources_.num - first < kMost ? sources_.num - first : kMost;
      for (int64_t k = 0; k < num; ++k) {
        rows[k] =
            sources_.pooled[first + k] ? pooled_row(first + k) : sources_.image[first + k] + h_ * shape_.width * shape_.channels;
      }
      const Call call{num, rows, sources_.scale + first, bias, out, x, product + (x != nullptr ? first : 0)};
      if (start == Start::kBias) with_products<Start::kBias>(call);
      if (start == Start::kZero) with_products<Start::kZero>(call);
      if (start == Start::kOut) with_products<Start::kOut>(call);
    }
  }

 private:
  T* pooled_row(int64_t k) const { return pooled_ + k * shape_.width * shape_.channels; }

  void fill(const T* bias, T* out) const {
    if (bias == nullptr) {
      std::memset(out, 0, sizeof(T) * size_t(shape_.width * shape_.channels));
      return;
    }
    for (int64_t w = 0; w < shape_.width; ++w) {
      std::memcpy(out + w * shape_.channels, bias, sizeof(T) * size_t(shape_.channels));
    }
  }

  struct Call {
    int64_t num;
    const T* const* rows;
    const T* const* scale;
    const T* bias;
    T* out;
    const T* x;
    double* product;
  };

  template <Start kStart>
  void with_products(const Call& call) const {
    call.x != nullptr ? with_num<true, kStart>(call) : with_num<false, kStart>(call);
  }

  template <bool kProducts, Start kStart>
  void with_num(const Call& call) const {
    const auto run = [&](auto combination) {
      combination(call.rows, call.scale, call.bias, call.out, shape_.width, shape_.channels, call.x, call.product);
    };
    if (call.num == 1) run(combine<1, kProducts, kStart, T>);
    if (call.num == 2) run(combine<2, kProducts, kStart, T>);
    if (call.num == 3) run(combine<3, kProducts, kStart, T>);
    if (call.num == 4) run(combine<4, kProducts, kStart, T>);
  }

  const Sources<T>& sources_;
  const ImageShape& shape_;
  T* const pooled_;
  int64_t h_ = 0;
};

}  // namespace

template <class T>
void node_forward(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* workspace) {
  Rows<T> rows(sources, shape, workspace);
  for (int64_t h = 0; h < shape.height; ++h) {
    rows.template go_to<false>(h);
    rows.add_up(bias, y + h * shape.width * shape.channels, static_cast<const T*>(nullptr), nullptr);
  }
}

template <class T>
void node_backward(const Sources<T>& sources, const T* x, T* dx, double* gate_grad, const ImageShape& shape, T* workspace) {
  Rows<T> rows(sources, shape, workspace);
  for (int64_t h = 0; h < shape.height; ++h) {
    const int64_t offset = h * shape.width * shape.channels;
    rows.template go_to<true>(h);
    rows.add_up(nullptr, dx + offset, gate_grad != nullptr ? x + offset : nullptr, gate_grad);
  }
}

// The distance is taken from the image's first pixel: sums of squares about 0 cancel where the mean is large beside the spread.
template <class T>
void channel_moments(const T* z, int64_t pixels, int64_t channels, double* mean, double* m2) {
  for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
  for_runs(pixels, [&](int64_t first, int64_t last) {
    for_lines<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const V origin = load_as<V>(z + c);
      V sums[2];
      add_up(first, last, sums, [&](V(&sum)[2], int64_t i) {
        const V v = load_as<V>(z + i * channels + c) - origin;
        sum[0] += v;
        sum[1] += v * v;
      });
      add_to(mean + c, sums[0]);
      add_to(m2 + c, sums[1]);
    });
  });
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
  for_runs(pixels, [&](int64_t first, int64_t last) {
    for_lines<T>(channels, [&](int64_t c, auto zero) {
      using V = decltype(zero);
      const auto gradient = [&](int64_t i) { return load_as<V>(dy + i * channels + c); };
      const auto distance = [&](int64_t k, V center, int64_t i) { return load_as<V>(z[k] + i * channels + c) - center; };
      V both[2], sum[1];
      if (num == 0) add_up(first, last, both, [&](V(&s)[2], int64_t i) { s[0] += gradient(i); });
      if (num > 0) {
        const V center = load_as<V>(mean[0] + c);
        add_up(first, last, both, [&](V(&s)[2], int64_t i) {
          const V d = gradient(i);
          s[0] += d;
          s[1] += d * distance(0, center, i);
        });
        add_to(s2[0] + c, both[1]);
      }
      add_to(s1 + c, both[0]);
      for (int64_t k = 1; k < num; ++k) {
        const V center = load_as<V>(mean[k] + c);
        add_up(first, last, sum, [&](V(&s)[1], int64_t i) { s[0] += gradient(i) * distance(k, center, i); });
        add_to(s2[k] + c, sum[0]);
      }
    });
  });
}

// Image by image, as they lie in memory: other threads wrote them.
template <class T>
void join_moments(const double* means, const double* m2s, int64_t images, int64_t pixels, int64_t channels, double* mean,
                  double* variance) {
  for (int64_t c = 0; c < channels; ++c) mean[c] = variance[c] = 0;
  for (int64_t i = 0; i < images; ++i, means += channels, m2s += channels) {
    const double share = 1 / double(i + 1), weight = double(pixels) * double(i) * share;
    for_channels<double>(channels, [=](int64_t c, auto zero) {
      using V = decltype(zero);
      const V joined = load_as<V>(mean + c), distance = load_as<V>(means + c) - joined;
      store_as(mean + c, joined + distance * share);
      store_as(variance + c, load_as<V>(variance + c) + load_as<V>(m2s + c) + distance * distance * weight);
    });
  }
  const double count = images * pixels > 0 ? double(images * pixels) : 1;
  for (int64_t c = 0; c < channels; ++c) variance[c] /= count;
}

template <class T>
void add_images(const double* rows, int64_t images, int64_t width, double* sum) {
  for (int64_t c = 0; c < width; ++c) sum[c] = 0;
  for (int64_t i = 0; i < images; ++i, rows += width) {
    for_channels<double>(width, [=](int64_t c, auto zero) {
      using V = decltype(zero);
      store_as(sum + c, load_as<V>(sum + c) + load_as<V>(rows + c));
    });
  }
}

template <class T>
void fill_cell(Kernels<T>* table) {
  table->node_forward = node_forward<T>;
  table->node_backward = node_backward<T>;
  table->channel_moments = channel_moments<T>;
  table->node_sums = node_sums<T>;
  table->join_moments = join_moments<T>;
  table->add_images = add_images<T>;
}
template void fill_cell(Kernels<float>*);
template void fill_cell(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
