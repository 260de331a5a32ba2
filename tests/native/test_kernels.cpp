// The CPU kernels of one instruction set against plain loops in double, without torch, so that sanitizers see every access.
// Compiled together with the kernel files for one ADVNAS_ISA.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"

namespace advnas::cpu::ADVNAS_ISA {
template <class T>
void fill_cell(Kernels<T>*);
template <class T>
void fill_convolution(Kernels<T>*);
template <class T>
void fill_winograd(Kernels<T>*);
}  // namespace advnas::cpu::ADVNAS_ISA

namespace {

using namespace advnas;

int passed = 0, failed = 0;

template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-11 : 2e-5;

// A heap buffer of exactly this size: AddressSanitizer sees what reaches over its ends.
template <class T>
std::vector<T> random(int64_t size, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(size);
  for (T& value : values) value = T(normal(bits));
  return values;
}

template <class T>
void expect(const char* what, const std::vector<T>& actual, const std::vector<double>& expected, const ConvolutionShape& at) {
  double largest = 1e-3, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    error = std::max(error, std::isfinite(double(actual[i])) ? std::abs(double(actual[i]) - expected[i]) : INFINITY);
  }
  const bool ok = actual.size() == expected.size() && error <= kTolerance<T> * largest;
  if (!ok) {
    std::printf("%s, %zu bytes, %lldx%lld, %lld -> %lld channels, size %lld: off by %g of %g\n", what, sizeof(T),
                (long long)at.height, (long long)at.width, (long long)at.in, (long long)at.out, (long long)at.size, error,
                largest);
  }
  ok ? ++passed : ++failed;
}

// y[h, w, o] = sum of in[h + r - p, w + s - p, i] weight[r, s, i, o]
template <class T>
std::vector<double> plain_convolution(const std::vector<T>& in, const std::vector<T>& weight, const ConvolutionShape& at) {
  std::vector<double> y(at.height * at.width * at.out);
  const int64_t p = at.size / 2;
  for (int64_t h = 0; h < at.height; ++h)
    for (int64_t w = 0; w < at.width; ++w)
      for (int64_t r = 0; r < at.size; ++r)
        for (int64_t s = 0; s < at.size; ++s) {
          const int64_t y0 = h + r - p, x0 = w + s - p;
          if (y0 < 0 || x0 < 0 || y0 >= at.height || x0 >= at.width) continue;
          for (int64_t i = 0; i < at.in; ++i)
            for (int64_t o = 0; o < at.out; ++o)
              y[(h * at.width + w) * at.out + o] +=
                  double(in[(y0 * at.width + x0) * at.in + i]) * weight[((r * at.size + s) * at.in + i) * at.out + o];
        }
  return y;
}

template <class T>
std::vector<double> plain_weight_gradient(const std::vector<T>& in, const std::vector<T>& dz, const ConvolutionShape& at) {
  std::vector<double> dweight(at.size * at.size * at.in * at.out);
  const int64_t p = at.size / 2;
  for (int64_t h = 0; h < at.height; ++h)
    for (int64_t w = 0; w < at.width; ++w)
      for (int64_t r = 0; r < at.size; ++r)
        for (int64_t s = 0; s < at.size; ++s) {
          const int64_t y0 = h + r - p, x0 = w + s - p;
          if (y0 < 0 || x0 < 0 || y0 >= at.height || x0 >= at.width) continue;
          for (int64_t i = 0; i < at.in; ++i)
            for (int64_t o = 0; o < at.out; ++o)
              dweight[((r * at.size + s) * at.in + i) * at.out + o] +=
                  double(in[(y0 * at.width + x0) * at.in + i]) * dz[(h * at.width + w) * at.out + o];
        }
  return dweight;
}

template <class T>
void check_convolutions(const cpu::Kernels<T>& kernels, const ConvolutionShape& at) {
  const int64_t pixels = at.height * at.width;
  const auto x = random<T>(pixels * at.in, 1), weight = random<T>(at.size * at.size * at.in * at.out, 2);
  const auto dy = random<T>(pixels * at.out, 3), z = random<T>(pixels * at.out, 4);
  const auto a = random<T>(at.out, 5), b = random<T>(at.out, 6), c = random<T>(at.out, 7);
  std::vector<T> relu(x), dz(dy.size());
  for (T& value : relu) value = value > 0 ? value : T(0);
  for (size_t i = 0; i < dz.size(); ++i) dz[i] = a[i % at.out] * dy[i] + b[i % at.out] * z[i] + c[i % at.out];
  const auto y_expected = plain_convolution(relu, weight, at);
  const auto dweight_expected = plain_weight_gradient(relu, dz, at);

  std::vector<T> frame(frame_elements(at.height, at.width, at.in, at.size), T(NAN));
  std::vector<T> dz_frame(frame_elements(at.height, at.width, at.out, at.size), T(NAN));
  std::vector<T> y(pixels * at.out, T(NAN)), dweight(weight.size());
  kernels.pad_relu(x.data(), frame.data(), at.height, at.width, at.in, at.size);
  kernels.pad_gradient(dy.data(), z.data(), a.data(), b.data(), c.data(), dz_frame.data(), at.height, at.width, at.out, at.size);
  kernels.convolve(frame.data(), weight.data(), y.data(), at);
  kernels.convolve_weight_gradient(frame.data(), dz_frame.data(), dweight.data(), at);
  expect("convolve", y, y_expected, at);
  expect("convolve_weight_gradient", dweight, dweight_expected, at);
  if (at.size != 3) return;
  std::vector<T> u(kWinogradPlaces * at.in * at.out), du(u.size()), workspace(winograd_workspace(at), T(NAN));
  kernels.winograd_weight(weight.data(), u.data(), at.in, at.out);
  kernels.winograd_convolve(frame.data(), u.data(), y.data(), at, workspace.data());
  kernels.winograd_weight_gradient(frame.data(), dz_frame.data(), du.data(), at, workspace.data());
  kernels.winograd_finish(du.data(), dweight.data(), at.in, at.out);
  expect("winograd_convolve", y, y_expected, at);
  expect("winograd_weight_gradient", dweight, dweight_expected, at);
}

template <class T>
void check_node(const cpu::Kernels<T>& kernels, const ImageShape& shape) {
  const int64_t size = shape.height * shape.width * shape.channels;
  const ConvolutionShape at{shape.height, shape.width, shape.channels, shape.channels, 3};
  const auto skip = random<T>(size, 1), pool = random<T>(size, 2), x = random<T>(size, 3);
  const auto scale = random<T>(shape.channels, 4), bias = random<T>(shape.channels, 5);
  const T gate = T(0.7);
  const T *skips[] = {skip.data()}, *scales[] = {scale.data()}, *pools[] = {pool.data()};
  const Sources<T> sources{skips, scales, 1, pools, &gate, 1};
  std::vector<double> forward(size), backward(size);
  const auto index = [&](int64_t h, int64_t w, int64_t c) { return (h * shape.width + w) * shape.channels + c; };
  const auto window = [](int64_t i, int64_t side) { return std::min(i + 1, side - 1) - std::max<int64_t>(i - 1, 0) + 1; };
  double skip_gate = 0, pool_gate = 0;
  for (int64_t h = 0; h < shape.height; ++h)
    for (int64_t w = 0; w < shape.width; ++w)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t i = index(h, w, c);
        forward[i] += bias[c] + double(scale[c]) * skip[i];
        backward[i] += double(scale[c]) * skip[i];
        skip_gate += double(skip[i]) * x[i];
        for (int64_t r = std::max<int64_t>(h - 1, 0); r <= std::min(h + 1, shape.height - 1); ++r)
          for (int64_t s = std::max<int64_t>(w - 1, 0); s <= std::min(w + 1, shape.width - 1); ++s) {
            const double count = double(window(h, shape.height) * window(w, shape.width));
            forward[i] += gate * double(pool[index(r, s, c)]) / count;
            backward[index(r, s, c)] += gate * double(pool[i]) / count;
            pool_gate += double(pool[i]) / count * x[index(r, s, c)];
          }
      }
  std::vector<T> y(size, T(NAN)), row(pool_workspace(shape), T(NAN));
  kernels.node_forward(sources, bias.data(), y.data(), shape, row.data());
  expect("node_forward", y, forward, at);
  std::vector<double> gates(2);
  kernels.node_backward(sources, x.data(), y.data(), &gates[0], &gates[1], shape, row.data());
  expect("node_backward", y, backward, at);
  expect("gate gradients", std::vector<T>{T(gates[0]), T(gates[1])}, {skip_gate, pool_gate}, at);
}

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
  const auto typed = [](const std::vector<double>& values) { return std::vector<T>(values.begin(), values.end()); };
  expect("mean", typed(mean), mean_expected, at);
  expect("m2", typed(m2), m2_expected, at);
  expect("s1", typed(s1), s1_expected, at);
  expect("s2", typed(s2), s2_expected, at);
}

template <class T>
void check_all() {
  cpu::Kernels<T> kernels{};
  cpu::ADVNAS_ISA::fill_cell(&kernels);
  cpu::ADVNAS_ISA::fill_convolution(&kernels);
  cpu::ADVNAS_ISA::fill_winograd(&kernels);
  for (int64_t size : {1, 3, 5}) {
    for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {5, 4}, {8, 8}, {9, 13}, {4, 33}}) {
      for (auto [in, out] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {8, 8}, {16, 16}, {17, 5}, {12, 40}}) {
        check_convolutions(kernels, {height, width, in, out, size});
      }
    }
  }
  for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {2, 2}, {7, 3}, {8, 8}}) {
    for (int64_t channels : {1, 4, 8, 17, 32}) check_node(kernels, {height, width, channels});
  }
  for (int64_t pixels : {1, 63, 64, 65, 300}) {
    for (int64_t channels : {1, 8, 19}) check_sums(kernels, pixels, channels);
  }
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
