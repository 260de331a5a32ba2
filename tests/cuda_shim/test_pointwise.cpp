// pointwise.cu against the formulas of pointwise.h in double. How well statistics are joined is test_norm.cpp's matter.
#include <array>

#include "../../csrc/kernels/pointwise.h"
#include "check.h"

namespace {

using namespace check;
using namespace advnas::cuda;
using Doubles = std::vector<double>;

std::string text(const PointwiseShape& s) {
  return std::to_string(s.pixels) + " pixels, " + std::to_string(s.in) + " to " + std::to_string(s.out);
}

constexpr PointwisePrologue kNothing{false, 0, 0}, kRelu{true, 0, 0};

int64_t inputs(const PointwiseShape& s, const PointwisePrologue& prologue) {
  if (prologue.height == 0) return s.pixels * s.in;
  return s.pixels / ((prologue.height + 1) / 2) / ((prologue.width + 1) / 2) * prologue.height * prologue.width * s.in;
}

template <class T>
Doubles apply(const PointwisePrologue& prologue, const std::vector<T>& x, const PointwiseShape& s) {
  Doubles values = doubles(x);
  if (prologue.relu) {
    for (double& v : values) v = check::relu(v);
  }
  if (prologue.height == 0) return values;
  Doubles means;
  const int height = prologue.height, width = prologue.width;
  for (size_t image = 0; image < values.size(); image += size_t(height) * width * s.in) {
    for (int h = 0; h < height; h += 2) {
      for (int w = 0; w < width; w += 2) {
        for (int c = 0; c < s.in; ++c) {
          double sum = 0;
          int num = 0;
          for (int y = h; y < std::min(h + 2, height); ++y) {
            for (int v = w; v < std::min(w + 2, width); ++v, ++num) sum += values[image + (size_t(y) * width + v) * s.in + c];
          }
          means.push_back(float(T(float(sum / num))));
        }
      }
    }
  }
  return means;
}

// large: the first input is 1000 everywhere, so that outputs have means of about a thousand times their spread.
template <class T>
void forward(const PointwiseShape& s, PointwisePrologue prologue, bool of_batch, bool large, const std::string& what) {
  std::vector<T> x = noise_with_zeros<T>(inputs(s, prologue), 1);
  const std::vector<T> weight = noise<T>(int64_t(s.out) * s.in, 2, large ? 1.5 : 0);
  for (int64_t p = 0; p < s.pixels && large; ++p) x[size_t(p * s.in)] = T(1000.0f);
  const Doubles input = apply(prologue, x, s), w = doubles(weight);
  Doubles z(size_t(s.pixels * s.out)), magnitude(z.size());
  for (int64_t p = 0; p < s.pixels; ++p) {
    for (int o = 0; o < s.out; ++o) {
      Sum sum;
      for (int i = 0; i < s.in; ++i) sum.add(input[size_t(p * s.in + i)] * w[size_t(o * s.in + i)]);
      z[size_t(p * s.out + o)] = sum.value;
      magnitude[size_t(p * s.out + o)] = sum.magnitude;
    }
  }
  const Buffer<T> x_device(x, "x"), weight_device(weight, "weight");
  Buffer<T> z_device(z.size(), "z");
  const Buffer<float> gamma(noise<float>(s.out, 3, 1.5), "gamma"), beta(noise<float>(s.out, 4), "beta");
  Buffer<float> rows(size_t(kNormRows) * s.out, "rows"), partial(pointwise_statistics_workspace(s), "partial");
  Buffer<float> running_mean(noise<float>(s.out, 5), "running_mean"), running_var(noise<float>(s.out, 6, 2), "running_var");
  Buffer<int64_t> tracked(std::vector<int64_t>{6}, "batches_tracked");
  Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  const Doubles old_mean = doubles(running_mean), old_variance = doubles(running_var), g = doubles(gamma), b = doubles(beta);
  PointwiseForward<T> convolution{s,       x_device.data(), weight_device.data(), prologue, z_device.data(), of_batch, {},
                                  nullptr, nullptr};
  if (of_batch) {
    convolution.norm = {gamma.data(), beta.data(), nullptr, nullptr, nullptr, nullptr, 0.75f, 1e-5f, 0.1f, rows.data()};
    if (s.pixels > 1) {
      convolution.norm.running_mean = running_mean.data();
      convolution.norm.running_var = running_var.data();
      convolution.norm.batches_tracked = tracked.data();
    }
    convolution.partial = partial.data();
    convolution.counter = counter.data();
  }
  cuda_shim::clear_launches();
  pointwise_forward<T>(convolution, nullptr);
  expect_close(z_device, z, magnitude, what + ": z");
  expect_zero(counter, what);
  expect(tracked.host()[0] == (of_batch && s.pixels > 1 ? 7 : 6), what + ": batches_tracked");
  if (!of_batch) return;

  // The statistics are those of z as it was stored.
  const Doubles stored = doubles(z_device);
  std::vector<Sum> expected(size_t(kNormRows) * s.out), tracked_mean, tracked_variance;
  for (int o = 0; o < s.out; ++o) {
    double mean = 0, m2 = 0;
    for (int64_t p = 0; p < s.pixels; ++p) mean += stored[size_t(p * s.out + o)] / double(s.pixels);
    for (int64_t p = 0; p < s.pixels; ++p) m2 += std::pow(stored[size_t(p * s.out + o)] - mean, 2);
    const double variance = m2 / double(s.pixels), rstd = 1 / std::sqrt(variance + 1e-5), scale = 0.75 * g[o] * rstd;
    const double distance = std::abs(mean) + 1 / rstd;
    expected[kMean * s.out + o] = {mean, distance};
    expected[kRstd * s.out + o] = {rstd, 50 * rstd};  // 5e-4: the variance to 1e-3
    expected[kScale * s.out + o] = {scale, 50 * std::abs(scale)};
    expected[kShift * s.out + o] = {0.75 * b[o] - scale * mean, std::abs(b[o]) + 50 * std::abs(scale) * distance};
    tracked_mean.push_back({old_mean[o] + 0.1 * (mean - old_mean[o]), distance + 1});
    tracked_variance.push_back({old_variance[o] + 0.1 * (m2 / double(s.pixels - 1) - old_variance[o]), 10 * variance + 1});
  }
  expect_close(rows, expected, what + ": rows");
  if (s.pixels == 1) return;
  expect_close(running_mean, tracked_mean, what + ": running_mean");
  expect_close(running_var, tracked_variance, what + ": running_var");
}

template <class T>
void backward(const PointwiseShape& s, PointwisePrologue prologue, bool has_dp, bool has_dweight, const std::string& what) {
  const std::vector<T> dy = noise<T>(s.pixels * s.out, 1), z = noise<T>(s.pixels * s.out, 2);
  const std::vector<T> x = noise_with_zeros<T>(inputs(s, prologue), 3), weight = noise<T>(int64_t(s.out) * s.in, 4);
  const std::vector<float> gradient = noise<float>(int64_t(kGradientRows) * s.out, 5);
  const Doubles input = apply(prologue, x, s), w = doubles(weight);
  Doubles dz, dp(size_t(s.pixels * s.in)), dp_magnitude(dp.size()), dweight(w.size()), dweight_magnitude(w.size());
  for (size_t i = 0; i < dy.size(); ++i) {
    const float* const row = gradient.data() + i % s.out;
    dz.push_back(float(T(row[kOfDy * s.out] * float(dy[i]) + row[kOfZ * s.out] * float(z[i]) + row[kConstant * s.out])));
  }
  // dz may round to the other neighbour on the device.
  const double rounding = std::is_same_v<T, float> ? 1 : 1e5 * kSpacing<T> / 8;
  for (int64_t p = 0; p < s.pixels; ++p) {
    for (int o = 0; o < s.out; ++o) {
      const double d = dz[size_t(p * s.out + o)];
      for (int i = 0; i < s.in; ++i) {
        const auto at = size_t(p * s.in + i), of_weight = size_t(o * s.in + i);
        dp[at] += d * w[of_weight];
        dp_magnitude[at] += rounding * std::abs(d * w[of_weight]);
        dweight[of_weight] += d * input[at];
        dweight_magnitude[of_weight] += rounding * std::abs(d * input[at]);
      }
    }
  }
  const Buffer<T> dy_device(dy, "dy"), z_device(z, "z"), x_device(x, "x"), weight_device(weight, "weight");
  const Buffer<float> rows(gradient, "gradient");
  Buffer<T> dp_device(dp.size(), "dp"), dweight_device(w.size(), "dweight");
  Buffer<float> partial(has_dweight ? size_t(pointwise_gradient_workspace(s)) : 0, "partial");
  Buffer<unsigned> counter(std::vector<unsigned>(kCounters), "counter");
  cuda_shim::clear_launches();
  pointwise_backward<T>({s, dy_device.data(), z_device.data(), rows.data(), has_dweight ? x_device.data() : nullptr,
                         has_dp ? weight_device.data() : nullptr, prologue, has_dp ? dp_device.data() : nullptr,
                         has_dweight ? dweight_device.data() : nullptr, has_dweight ? partial.data() : nullptr, counter.data()},
                        nullptr);
  if (has_dp) expect_close(dp_device, dp, dp_magnitude, what + ": dp");
  if (has_dweight) expect_close(dweight_device, dweight, dweight_magnitude, what + ": dweight");
  expect_zero(counter, what);
}

// Channels that fill tiles and that do not; tiles of 128, 64, 32 and 16 pixels; pixels that end within a tile; several ranges of
// pixels by several slices of the input's channels.
template <class T>
std::vector<PointwiseShape> sizes() {
  std::vector<PointwiseShape> all = {{1, 1, 1},    {7, 8, 16},    {15, 3, 17},   {64, 16, 64}, {300, 16, 8},
                                     {97, 33, 33}, {35, 16, 128}, {45, 16, 256}, {600, 18, 3}};
  if (std::is_same_v<T, float>) all.push_back({35, 240, 16});  // the smallest result of any tile
  if (kQuick) return all;
  all.insert(all.end(), {{129, 17, 1}, {131, 64, 64}, {40, 17, 208}, {33, 64, 32}, {50, 1, 64}});
  return all;
}

}  // namespace

int main() {
  for_types([]<class T>() {
    const std::string type = name_of<T>();
    size_t n = 0;
    for (const PointwiseShape& s : sizes<T>()) {
      ++n;
      expect(pointwise_fits<T>(s), "fits: " + text(s));
      under_orders("forward " + type + " " + text(s),
                   [&](const std::string& what) { forward<T>(s, n % 2 ? kRelu : kNothing, true, false, what); });
      under_orders("backward " + type + " " + text(s),
                   [&](const std::string& what) { backward<T>(s, n % 2 ? kRelu : kNothing, true, true, what); });
      if (kQuick && n % 3) continue;
      forward<T>(s, n % 2 == 0 ? kRelu : kNothing, false, false, "forward without statistics, " + type + " " + text(s));
      backward<T>(s, n % 2 ? kRelu : kNothing, true, false, "dp alone, " + type + " " + text(s));
      backward<T>(s, n % 2 == 0 ? kRelu : kNothing, false, true, "dweight alone, " + type + " " + text(s));
    }
    forward<T>({500, 8, 24}, kNothing, true, true, "large means, " + type);
    for (const PointwiseShape& s : {PointwiseShape{1, 512, 16}, {1, 16, 257}, {1, 256, 256}, {1, 128, 160}}) {
      expect(!pointwise_fits<T>(s), "does not fit: " + text(s));
    }
    pointwise_forward<T>({{0, 16, 16}, nullptr, nullptr, kNothing, nullptr, false, {}, nullptr, nullptr}, nullptr);
    backward<T>({0, 16, 16}, kRelu, true, true, "no pixels, " + type);
    // Means of 2x2 pixels: even and odd sizes, and images of one row or one column.
    for (const auto& [height, width, in, out] :
         std::vector<std::array<int, 4>>{{6, 8, 8, 16}, {7, 5, 16, 24}, {1, 9, 3, 5}, {4, 1, 33, 8}}) {
      const PointwiseShape s{3 * int64_t((height + 1) / 2) * ((width + 1) / 2), in, out};
      const PointwisePrologue mean{false, height, width};
      forward<T>(s, mean, in % 2 == 0, false, "forward of means, " + type + " " + text(s));
      backward<T>(s, mean, true, true, "backward of means, " + type + " " + text(s));
    }
    // More tiles than blocks.
    backward<T>({128 * 128 + 70, 2, 3}, kRelu, true, true, "long, " + type);
    if (kQuick) return;
    forward<T>({256 * 128 + 70, 2, 3}, kRelu, true, false, "long, " + type);

    for (const Images& s : network_sizes()) {
      const int channels = s.channels;
      const PointwiseShape shape{s.pixels(), channels, channels};
      forward<T>(shape, kRelu, true, false, "network, " + type);
      expect_traffic<T>("pointwise_forward", s, 2 * s.size() + channels * channels, (2 + kNormRows + 4) * channels);
      backward<T>(shape, kRelu, true, false, "network, " + type);
      expect_traffic<T>("pointwise_backward_dp", s, 3 * s.size() + channels * channels, kGradientRows * channels);
      backward<T>(shape, kRelu, true, true, "network, " + type);
      expect_traffic<T>("pointwise_backward", s, 4 * s.size() + 2 * channels * channels, kGradientRows * channels);
    }
  });
  return finish();
}
