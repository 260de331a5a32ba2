// A few channels at a time, all pixels of the image.
#include "../head.h"

#include "channels.h"
#include "isa.h"
#include "sums.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
void head_forward(const T* x, const ScaleShift<const T*>& map, int64_t pixels, int64_t channels, T* h) {
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const V scale = load_as<V>(map.scale + c), shift = load_as<V>(map.shift + c);
    double total[sizeof(V) / sizeof(T)] = {};
    for_runs(pixels, [&](int64_t first, int64_t last) {
      V sum[1];
      add_up(first, last, sum, [&](V(&s)[1], int64_t i) {
        const V y = scale * load_as<V>(x + i * channels + c) + shift;
        s[0] += y < zero ? zero : y;  // a NaN stays
      });
      add_to(total, sum[0]);
    });
    for (uint64_t i = 0; i < sizeof(V) / sizeof(T); ++i) h[c + int64_t(i)] = T(total[i] / double(pixels));
  });
}

template <class T>
void head_sums(const T* x, const T* dh, const ScaleShift<const T*>& map, const T* mean, int64_t pixels, int64_t channels,
               double* s1, double* s2) {
  for (int64_t c = 0; c < channels; ++c) s1[c] = s2[c] = 0;
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const V scale = load_as<V>(map.scale + c), shift = load_as<V>(map.shift + c), center = load_as<V>(mean + c);
    const V share = load_as<V>(dh + c) / T(pixels);
    for_runs(pixels, [&](int64_t first, int64_t last) {
      V sums[2];
      add_up(first, last, sums, [&](V(&s)[2], int64_t i) {
        const V v = load_as<V>(x + i * channels + c), g = scale * v + shift <= zero ? zero : share;
        s[0] += g;
        s[1] += g * (v - center);
      });
      add_to(s1 + c, sums[0]);
      add_to(s2 + c, sums[1]);
    });
  });
}

template <class T>
void head_backward(const T* x, const T* dh, const ScaleShift<const T*>& map, const NormGradient<const T*>& gradient,
                   int64_t pixels, int64_t channels, T* dx) {
  for_channels<T>(channels, [&](int64_t c, auto zero) {
    using V = decltype(zero);
    const V scale = load_as<V>(map.scale + c), shift = load_as<V>(map.shift + c);
    const V active = load_as<V>(gradient.of_dy + c) * (load_as<V>(dh + c) / T(pixels));
    const V of_z = load_as<V>(gradient.of_z + c), constant = load_as<V>(gradient.constant + c);
    for (int64_t at = c; at < pixels * channels; at += channels) {
      const V v = load_as<V>(x + at);
      store_as(dx + at, (scale * v + shift <= zero ? zero : active) + of_z * v + constant);
    }
  });
}

template <class T>
void fill_head(Kernels<T>* table) {
  table->head_forward = head_forward<T>;
  table->head_sums = head_sums<T>;
  table->head_backward = head_backward<T>;
}
template void fill_head(Kernels<float>*);
template void fill_head(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
