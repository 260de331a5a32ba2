// Bound by memory. Sums over pixels are taken in T over a run of pixels (sums.h) and then in double.
#include "../norm.h"

#include "channels.h"
#include "isa.h"
#include "sums.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

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
      V both[2]{}, sum[1]{};
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
void fill_norm(Kernels<T>* table) {
  table->channel_moments = channel_moments<T>;
  table->node_sums = node_sums<T>;
  table->join_moments = join_moments<T>;
  table->add_images = add_images<T>;
}
template void fill_norm(Kernels<float>*);
template void fill_norm(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
