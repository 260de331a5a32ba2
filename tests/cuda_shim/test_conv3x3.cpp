// conv3x3.cu against the formulas of conv3x3.h in double. How well statistics are joined is test_norm.cpp's matter.
#include <array>

#include "../../csrc/kernels/conv3x3.h"
#include "check.h"
#include "ptx.h"

namespace {

using namespace check;
using namespace advnas::cuda;
using Doubles = std::vector<double>;

std::string text(const Conv3x3Shape& s) {
  return std::to_string(s.batch) + "x" + std::to_string(s.height) + "x" + std::to_string(s.width) + ", " + std::to_string(s.in) +
         " to " + std::to_string(s.out);
}

// As it enters a product: float32 with the bits of TF32.
template <class T>
Doubles in_product(const std::vector<T>& values) {
  Doubles result = doubles(values);
  if (std::is_same_v<T, float>) {
    for (double& v : result) v = cuda_shim::to_tf32(float(v));
  }
  return result;
}

template <class T>
Doubles input_of(const std::vector<T>& x, bool has_relu) {
  Doubles values = in_product(x);
  for (double& v : values) v = has_relu ? check::relu(v) : v;
  return values;
}

// each(pixel of the output, pixel of the input, tap) wherever a tap meets a pixel.
template <class Each>
void visit(const Conv3x3Shape& s, const Each& each) {
  for (int64_t pixel = 0; pixel < s.pixels(); ++pixel) {
    const int w = int(pixel % s.width), h = int(pixel / s.width % s.height);
    for (int tap = 0; tap < 9; ++tap) {
      const int y = h + tap / 3 - 1, x = w + tap % 3 - 1;
      if (y >= 0 && y < s.height && x >= 0 && x < s.width) each(pixel, pixel + (tap / 3 - 1) * s.width + tap % 3 - 1, tap);
    }
  }
}

// large: the first input is 1000 everywhere and meets the middle tap alone, so that outputs have large means.
template <class T>
void forward(const Conv3x3Shape& s, bool relu, bool of_batch, bool large, const std::string& what) {
  std::vector<T> x = noise_with_zeros<T>(s.pixels() * s.in, 1), weight = noise<T>(int64_t(s.out) * 9 * s.in, 2);
  for (int64_t p = 0; p < s.pixels() && large; ++p) x[size_t(p * s.in)] = T(1000.0f);
  for (int64_t t = 0; t < s.out * 9 && large; ++t) weight[size_t(t * s.in)] = T(t % 9 == 4 ? 1.5f : 0.0f);
  const Doubles input = input_of(x, relu), w = in_product(weight);
  std::vector<Sum> sums(size_t(s.pixels() * s.out));
  visit(s, [&](int64_t to, int64_t from, int tap) {
    for (int o = 0; o < s.out; ++o) {
      Sum& sum = sums[size_t(to * s.out + o)];
      for (int i = 0; i < s.in; ++i) sum.add(input[size_t(from * s.in + i)] * w[size_t((o * 9 + tap) * s.in + i)]);
    }
  });
  Doubles z, magnitude;
  for (const Sum& sum : sums) {
    z.push_back(sum.value);
    magnitude.push_back(sum.magnitude);
  }
  const Buffer<T> x_device(x, "x"), weight_device(weight, "weight");
  Buffer<T> z_device(z.size(), "z");
  const Buffer<float> gamma(noise<float>(s.out, 3, 1.5), "gamma"), beta(noise<float>(s.out, 4), "beta");
  Buffer<float> rows(size_t(kNormRows) * s.out, "rows"), partial(conv3x3_statistics_workspace(s), "partial");
  Buffer<float> running_mean(noise<float>(s.out, 5), "running_mean"), running_var(noise<float>(s.out, 6, 2), "running_var");
  Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  const Doubles old_mean = doubles(running_mean), old_variance = doubles(running_var), g = doubles(gamma), b = doubles(beta);
  Conv3x3Forward<T> convolution{s, x_device.data(), weight_device.data(), relu, z_device.data(), of_batch, {}, nullptr, nullptr};
  const bool tracks = s.pixels() > 1;
  if (of_batch) {
    convolution.norm = {gamma.data(), beta.data(), nullptr, nullptr, nullptr, nullptr, 0.75f, 1e-5f, 0.1f, rows.data()};
    convolution.norm.running_mean = tracks ? running_mean.data() : nullptr;
    convolution.norm.running_var = tracks ? running_var.data() : nullptr;
    convolution.partial = partial.data();
    convolution.counter = counter.data();
  }
  cuda_shim::clear_launches();
  conv3x3_forward<T>(convolution, nullptr);
  expect_close(z_device, z, magnitude, what + ": z");
  expect_zero(counter, what);
  if (!of_batch) return;

  // The statistics are those of z as it was stored.
  const Doubles stored = doubles(z_device);
  std::vector<Sum> expected(size_t(kNormRows) * s.out), tracked_mean, tracked_variance;
  for (int o = 0; o < s.out; ++o) {
    const auto count = double(s.pixels());
    double mean = 0, m2 = 0;
    for (int64_t p = 0; p < s.pixels(); ++p) mean += stored[size_t(p * s.out + o)] / count;
    for (int64_t p = 0; p < s.pixels(); ++p) m2 += std::pow(stored[size_t(p * s.out + o)] - mean, 2);
    const double variance = m2 / count, rstd = 1 / std::sqrt(variance + 1e-5), scale = 0.75 * g[o] * rstd;
    const double distance = std::abs(mean) + 1 / rstd;
    expected[kMean * s.out + o] = {mean, distance};
    expected[kRstd * s.out + o] = {rstd, 50 * rstd};  // 5e-4: the variance to 1e-3
    expected[kScale * s.out + o] = {scale, 50 * std::abs(scale)};
    expected[kShift * s.out + o] = {0.75 * b[o] - scale * mean, std::abs(b[o]) + 50 * std::abs(scale) * distance};
    tracked_mean.push_back({old_mean[o] + 0.1 * (mean - old_mean[o]), distance + 1});
    tracked_variance.push_back({old_variance[o] + 0.1 * (m2 / (count - 1) - old_variance[o]), 10 * variance + 1});
  }
  expect_close(rows, expected, what + ": rows");
  if (!tracks) return;
  expect_close(running_mean, tracked_mean, what + ": running_mean");
  expect_close(running_var, tracked_variance, what + ": running_var");
}

// What both gradients take.
template <class T>
struct Given {
  std::vector<T> dy, z;
  std::vector<float> gradient;
  Doubles dz;

  explicit Given(const Conv3x3Shape& s)
      : dy(noise<T>(s.pixels() * s.out, 1)), z(noise<T>(s.pixels() * s.out, 2)), gradient(noise<float>(3 * s.out, 5)) {
    std::vector<T> stored;
    for (size_t i = 0; i < dy.size(); ++i) {
      const float* const row = gradient.data() + i % s.out;
      stored.push_back(T(row[kOfDy * s.out] * float(dy[i]) + row[kOfZ * s.out] * float(z[i]) + row[kConstant * s.out]));
    }
    dz = in_product(stored);
  }
};

// dz may round to the other neighbour on the device; the spacing of TF32 is that of float16.
template <class T>
const double kRounding = 1e5 * (std::is_same_v<T, float> ? kSpacing<__half> : kSpacing<T>) / 8;

template <class T>
void input_gradient(const Conv3x3Shape& s, const std::string& what) {
  const Given<T> given(s);
  const std::vector<T> weight = noise<T>(int64_t(s.out) * 9 * s.in, 4);
  const Doubles w = in_product(weight);
  Doubles dp(size_t(s.pixels() * s.in)), magnitude(dp.size());
  visit(s, [&](int64_t of_dz, int64_t of_dp, int tap) {
    for (int o = 0; o < s.out; ++o) {
      for (int i = 0; i < s.in; ++i) {
        const double term = given.dz[size_t(of_dz * s.out + o)] * w[size_t((o * 9 + tap) * s.in + i)];
        dp[size_t(of_dp * s.in + i)] += term;
        magnitude[size_t(of_dp * s.in + i)] += kRounding<T> * std::abs(term);
      }
    }
  });
  const Buffer<T> dy(given.dy, "dy"), z(given.z, "z"), weight_device(weight, "weight");
  const Buffer<float> rows(given.gradient, "gradient");
  Buffer<T> dp_device(dp.size(), "dp");
  cuda_shim::clear_launches();
  conv3x3_input<T>({s, dy.data(), z.data(), rows.data(), weight_device.data(), dp_device.data()}, nullptr);
  expect_close(dp_device, dp, magnitude, what + ": dp");
}

template <class T>
void weight_gradient(const Conv3x3Shape& s, bool relu, const std::string& what) {
  const Given<T> given(s);
  const std::vector<T> x = noise_with_zeros<T>(s.pixels() * s.in, 3);
  const Doubles input = input_of(x, relu);
  Doubles dweight(size_t(s.out) * 9 * s.in), magnitude(dweight.size());
  visit(s, [&](int64_t of_dz, int64_t of_x, int tap) {
    for (int o = 0; o < s.out; ++o) {
      for (int i = 0; i < s.in; ++i) {
        const double term = given.dz[size_t(of_dz * s.out + o)] * input[size_t(of_x * s.in + i)];
        dweight[size_t((o * 9 + tap) * s.in + i)] += term;
        magnitude[size_t((o * 9 + tap) * s.in + i)] += kRounding<T> * std::abs(term);
      }
    }
  });
  const Buffer<T> dy(given.dy, "dy"), z(given.z, "z"), x_device(x, "x");
  const Buffer<float> rows(given.gradient, "gradient");
  Buffer<T> dweight_device(dweight.size(), "dweight");
  Buffer<float> partial(size_t(conv3x3_weight_workspace<T>(s)), "partial");
  cuda_shim::clear_launches();
  conv3x3_weight<T>({s, dy.data(), z.data(), rows.data(), x_device.data(), relu, dweight_device.data(), partial.data()}, nullptr);
  expect_close(dweight_device, dweight, magnitude, what + ": dweight");
}

// One pixel; images smaller than a warp's positions; one row, one column; a tile that ends in the middle of a row, at the end of
// one, and between images; channels in one part and in several; one slice and several.
std::vector<Conv3x3Shape> sizes() {
  std::vector<Conv3x3Shape> all = {{1, 1, 1, 16, 16}, {3, 2, 3, 16, 32},  {2, 1, 40, 32, 16}, {1, 70, 1, 16, 16},
                                   {2, 7, 9, 64, 32}, {2, 15, 7, 48, 48}, {2, 8, 8, 32, 64},  {1, 31, 7, 16, 16}};
  if (!kQuick) all.insert(all.end(), {{5, 8, 8, 64, 64}, {3, 16, 16, 32, 32}, {1, 13, 70, 16, 16}, {2, 11, 12, 64, 16}});
  return all;
}

}  // namespace

int main() {
  for_types([]<class T>() {
    const std::string type = name_of<T>();
    size_t n = 0;
    for (const Conv3x3Shape& s : sizes()) {
      ++n;
      expect(conv3x3_fits<T>(s), "fits: " + text(s));
      under_orders("forward " + type + " " + text(s), [&](const std::string& what) { forward<T>(s, n % 2, true, false, what); });
      under_orders("input " + type + " " + text(s), [&](const std::string& what) { input_gradient<T>(s, what); });
      under_orders("weight " + type + " " + text(s), [&](const std::string& what) { weight_gradient<T>(s, n % 2, what); });
      if (!kQuick) forward<T>(s, n % 2 == 0, false, false, "forward without statistics, " + type + " " + text(s));
    }
    forward<T>({2, 9, 9, 16, 16}, false, true, true, "large means, " + type);
    weight_gradient<T>({30, 11, 10, 16, 16}, true, "several ranges, " + type);
    for (const Conv3x3Shape& s : {Conv3x3Shape{1, 4, 4, 8, 16},
                                  {1, 4, 4, 16, 24},
                                  {1, 4, 4, 80, 16},
                                  {1, 4, 4, 16, 128},
                                  {1, 4, 2000, 16, 16},
                                  {1 << 20, 32, 32, 16, 16}}) {
      expect(!conv3x3_fits<T>(s), "does not fit: " + text(s));
    }
    expect(conv3x3_runs_here(), "the shim has tensor cores");
    forward<T>({0, 4, 4, 16, 16}, true, false, false, "no images, " + type);
    input_gradient<T>({2, 0, 4, 16, 16}, "no rows, " + type);
    weight_gradient<T>({0, 4, 4, 16, 32}, true, "no images, " + type);
    if (kQuick) return;
    // Large tiles, and more of them than blocks.
    forward<T>({35000, 1, 1, 16, 16}, true, true, false, "long, " + type);
    input_gradient<T>({35000, 1, 1, 16, 16}, "long, " + type);
    weight_gradient<T>({35000, 1, 1, 16, 16}, true, "long, " + type);

    for (const Images& i : network_sizes()) {
      const Conv3x3Shape s{i.batch, i.height, i.width, i.channels, i.channels};
      const int64_t weight = 9 * int64_t(s.in) * s.out;
      forward<T>(s, true, true, false, "network, " + type);
      expect_traffic<T>("conv3x3_forward", i, 2 * i.size() + weight, (2 + kNormRows + 4) * s.out);
      input_gradient<T>(s, "network, " + type);
      expect_traffic<T>("conv3x3_input", i, 3 * i.size() + weight, kGradientRows * s.out);
      weight_gradient<T>(s, true, "network, " + type);
      // Parts of the gradient, which are large beside so few images.
      expect_traffic<T>("conv3x3_weight", i, 3 * i.size() + weight, kGradientRows * s.out, 2.5);
    }
  });
  return finish();
}
