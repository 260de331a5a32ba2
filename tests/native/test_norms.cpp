// Sums and moments over pixels and over images, as batch norm needs them, and the head.
#include "check.h"

namespace advnas {
namespace {

template <class T>
void check_sums(const cpu::Kernels<T>& kernels, int64_t pixels, int64_t channels) {
  const ConvolutionShape at{1, pixels, channels, channels, 1};
  auto z = random<T>(pixels * channels, 1);
  for (T& value : z) value += T(30);  // a mean that is large beside the spread
  const auto dy = random<T>(pixels * channels, 2), center = random<T>(channels, 3);
  std::vector<double> mean(channels), m2(channels), s1(channels), s2(channels);
  std::vector<double> mean_expected(channels), m2_expected(channels), s1_expected(channels), s2_expected(channels);
  for (int64_t i = 0; i < pixels * channels; ++i) {
    const int64_t c = i % channels;
    mean_expected[c] += double(z[i]) / double(pixels);
    s1_expected[c] += dy[i];
    s2_expected[c] += double(dy[i]) * (double(z[i]) - center[c]);
  }
  for (int64_t i = 0; i < pixels * channels; ++i) m2_expected[i % channels] += std::pow(z[i] - mean_expected[i % channels], 2);
  const T *zs[] = {z.data()}, *centers[] = {center.data()};
  double* s2s[] = {s2.data()};
  kernels.channel_moments(z.data(), pixels, channels, mean.data(), m2.data());
  kernels.node_sums(dy.data(), zs, centers, 1, pixels, channels, s1.data(), s2s);
  expect("mean", as<T>(mean), mean_expected, at);
  expect("m2", as<T>(m2), m2_expected, at);
  expect("s1", as<T>(s1), s1_expected, at);
  expect("s2", as<T>(s2), s2_expected, at);
}

// Mean and variance of all images from those of each, and sums over images. The images' means are far apart.
template <class T>
void check_images(const cpu::Kernels<T>& kernels, int64_t images, int64_t pixels, int64_t channels) {
  const ConvolutionShape at{images, pixels, channels, channels, 1};
  const auto offsets = random<double>(images * channels, 1), noise = random<double>(images * pixels * channels, 2);
  std::vector<double> z(noise.size()), means(offsets.size()), m2s(offsets.size());
  std::vector<double> mean_expected(channels), variance_expected(channels), sum_expected(channels);
  const auto image_of = [&](size_t i) { return int64_t(i) / channels / pixels * channels + int64_t(i) % channels; };
  for (size_t i = 0; i < z.size(); ++i) {
    z[i] = 30 + 10 * offsets[image_of(i)] + noise[i];
    means[image_of(i)] += z[i] / double(pixels);
    mean_expected[i % channels] += z[i] / double(images * pixels);
  }
  for (size_t i = 0; i < z.size(); ++i) {
    m2s[image_of(i)] += std::pow(z[i] - means[image_of(i)], 2);
    variance_expected[i % channels] += std::pow(z[i] - mean_expected[i % channels], 2) / double(images * pixels);
  }
  for (size_t i = 0; i < offsets.size(); ++i) sum_expected[i % channels] += offsets[i];
  std::vector<double> mean(channels, NAN), variance(channels, NAN), sum(channels, NAN);
  kernels.join_moments(means.data(), m2s.data(), images, pixels, channels, mean.data(), variance.data());
  kernels.add_images(offsets.data(), images, channels, sum.data());
  expect("join_moments, mean", mean, mean_expected, at);
  expect("join_moments, variance", variance, variance_expected, at);
  expect("add_images", sum, sum_expected, at);
}

// Every other value of the first channel is mapped to exactly 0, which gets no gradient.
template <class T>
void check_head(const cpu::Kernels<T>& kernels, int64_t pixels, int64_t channels) {
  const ConvolutionShape at{1, pixels, channels, channels, 1};
  auto x = random<T>(pixels * channels, 1), shift = random<T>(channels, 2);
  shift[0] = 0;
  for (int64_t p = 0; p < pixels; p += 2) x[p * channels] = 0;
  const auto scale = random<T>(channels, 3), mean = random<T>(channels, 4), dh = random<T>(channels, 5);
  const auto of_dy = random<T>(channels, 6), of_z = random<T>(channels, 7), constant = random<T>(channels, 8);
  std::vector<double> h_expected(channels), s1_expected(channels), s2_expected(channels), dx_expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t c = i % channels;
    const double y = double(scale[c]) * x[i] + shift[c], g = y > 0 ? double(dh[c]) / double(pixels) : 0;
    h_expected[c] += std::max(0., y) / double(pixels);
    s1_expected[c] += g;
    s2_expected[c] += g * (double(x[i]) - mean[c]);
    dx_expected[i] = of_dy[c] * g + double(of_z[c]) * x[i] + constant[c];
  }
  const ScaleShift<const T*> map{scale.data(), shift.data()};
  std::vector<T> h(channels, T(NAN)), dx(x.size(), T(NAN));
  std::vector<double> s1(channels, NAN), s2(channels, NAN);
  kernels.head_forward(x.data(), map, pixels, channels, h.data());
  kernels.head_sums(x.data(), dh.data(), map, mean.data(), pixels, channels, s1.data(), s2.data());
  kernels.head_backward(x.data(), dh.data(), map, {of_dy.data(), of_z.data(), constant.data()}, pixels, channels, dx.data());
  expect("head_forward", h, h_expected, at);
  expect("head_sums, s1", as<T>(s1), s1_expected, at);
  expect("head_sums, s2", as<T>(s2), s2_expected, at);
  expect("head_backward", dx, dx_expected, at);
  x.back() = T(NAN);
  kernels.head_forward(x.data(), map, pixels, channels, h.data());
  const bool kept = std::isnan(h.back());
  if (!kept) std::printf("head_forward, %zu bytes, %lldx%lld: loses a NaN\n", sizeof(T), (long long)pixels, (long long)channels);
  count(kept);
  h_expected.pop_back();
  h.pop_back();
  expect("head_forward, beside a NaN", h, h_expected, at);
}

template <class T>
void check_all() {
  const auto kernels = all_kernels<T>();
  for (int64_t pixels : {1, 63, 64, 65, 300}) {
    for (int64_t channels : {1, 8, 19, 32}) {
      check_sums(kernels, pixels, channels);
      check_head(kernels, pixels, channels);
      for (int64_t images : {0, 1, 2, 7}) check_images(kernels, images, pixels, channels);
    }
  }
}

}  // namespace

void check_all_norms() {
  check_all<float>();
  check_all<double>();
}

}  // namespace advnas
