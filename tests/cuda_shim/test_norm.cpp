// norm.cu against the formulas of batch_norm_math.h in double, from sums in two passes.
#include "../../csrc/kernels/batch_norm_math.h"
#include "../../csrc/kernels/norm.h"
#include "check.h"

namespace {

using namespace check;
using namespace advnas::cuda;

// Which of the parameters there are, and whether running statistics are means over all batches.
struct Given {
  bool affine = true, bias = true, running = true, cumulative = false;
};

struct Parameters {
  int channels;
  Given given;
  Buffer<float> gamma, beta, bias, running_mean, running_var, rows;
  Buffer<int64_t> tracked;
  static constexpr float kGate = 1.25f, kEps = 1e-5f, kMomentum = 0.1f;
  static constexpr int64_t kBatches = 3;  // seen before

  Parameters(int channels, Given given)
      : channels(channels),
        given(given),
        gamma(noise<float>(channels, 11, 1.5), "gamma"),
        beta(noise<float>(channels, 12), "beta"),
        bias(noise<float>(channels, 13), "bias"),
        running_mean(noise<float>(channels, 14), "running_mean"),
        running_var(noise<float>(channels, 15, 2), "running_var"),
        rows(size_t(kNormRows) * channels, "rows"),
        tracked(std::vector<int64_t>{kBatches}, "batches_tracked") {}

  NormForward forward() {
    return {given.affine ? gamma.data() : nullptr,
            given.affine ? beta.data() : nullptr,
            given.bias ? bias.data() : nullptr,
            given.running ? running_mean.data() : nullptr,
            given.running ? running_var.data() : nullptr,
            given.running ? tracked.data() : nullptr,
            kGate,
            kEps,
            float(given.cumulative ? advnas::kCumulative : double(kMomentum)),
            rows.data()};
  }

  void expect_rows(const std::vector<double>& mean, const std::vector<double>& variance, double eps,
                   const std::string& what) const {
    std::vector<Sum> expected(size_t(kNormRows) * channels);
    const std::vector<double> g = doubles(gamma), b = doubles(beta);
    for (int c = 0; c < channels; ++c) {
      const double rstd = 1 / std::sqrt(variance[c] + eps);
      const double scale = kGate * (given.affine ? g[c] : 1) * rstd, shift = given.affine ? b[c] : 0;
      // 5e-4 for the deviation, 1e-3 for the variance.
      const double distance = std::abs(mean[c]) + 1 / rstd;
      expected[kMean * channels + c] = {mean[c], distance};
      expected[kRstd * channels + c] = {rstd, 50 * rstd};
      expected[kScale * channels + c] = {scale, 50 * std::abs(scale)};
      expected[kShift * channels + c] = {kGate * shift - scale * mean[c], std::abs(shift) + 50 * std::abs(scale) * distance};
    }
    expect_close(rows, expected, what + ": rows");
  }
};

template <class T>
void test_statistics(const Images& s, Given given, double mean, const std::string& what) {
  const std::vector<T> z = noise<T>(s.size(), 1, mean);
  std::vector<double> mean_of(s.channels), m2(s.channels);
  const int64_t pixels = s.pixels();
  for (size_t i = 0; i < z.size(); ++i) mean_of[i % s.channels] += double(float(z[i])) / double(pixels);
  for (size_t i = 0; i < z.size(); ++i) m2[i % s.channels] += std::pow(double(float(z[i])) - mean_of[i % s.channels], 2);
  std::vector<double> variance, tracked_mean, tracked_variance;
  Parameters parameters(s.channels, given);
  const std::vector<double> old_mean = doubles(parameters.running_mean), old_variance = doubles(parameters.running_var);
  const std::vector<double> bias = doubles(parameters.bias);
  for (int c = 0; c < s.channels; ++c) {
    const double momentum = given.cumulative ? 1. / (Parameters::kBatches + 1) : Parameters::kMomentum;
    variance.push_back(m2[c] / double(pixels));
    tracked_mean.push_back(old_mean[c] + momentum * (mean_of[c] + (given.bias ? bias[c] : 0) - old_mean[c]));
    tracked_variance.push_back(old_variance[c] + momentum * (m2[c] / double(pixels - 1) - old_variance[c]));
  }
  const Buffer<T> from(z, "z");
  Buffer<float> partial(norm_statistics_workspace(s), "partial");
  Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  cuda_shim::clear_launches();
  norm_statistics<T>(from.data(), s, parameters.forward(), partial.data(), counter.data(), nullptr);
  parameters.expect_rows(mean_of, variance, Parameters::kEps, what);
  expect_zero(counter, what);
  if (!given.running) return;
  expect_close(parameters.running_mean, tracked_mean, what + ": running_mean");
  expect_close(parameters.running_var, tracked_variance, what + ": running_var");
  expect(parameters.tracked.host()[0] == Parameters::kBatches + 1, what + ": batches_tracked");
}

void test_fixed(int channels, Given given, const std::string& what) {
  Parameters parameters(channels, given);
  const std::vector<double> running_mean = doubles(parameters.running_mean), bias = doubles(parameters.bias);
  std::vector<double> mean, variance = doubles(parameters.running_var);
  for (int c = 0; c < channels; ++c) {
    mean.push_back((given.running ? running_mean[c] : 0) - (given.bias ? bias[c] : 0));
    if (!given.running) variance[c] = 1;
  }
  norm_fixed(channels, parameters.forward(), nullptr);
  parameters.expect_rows(mean, variance, given.running ? Parameters::kEps : 0, what);
  expect(parameters.tracked.host()[0] == Parameters::kBatches, what + ": batches_tracked");
}

template <class T>
void test_gradient(const Images& s, const std::string& what) {
  const std::vector<T> dy = noise<T>(s.size(), 2), z = noise<T>(s.size(), 3);
  const std::vector<float> gradient = noise<float>(int64_t(kGradientRows) * s.channels, 4);
  std::vector<double> expected;
  for (size_t i = 0; i < z.size(); ++i) {
    const float* const row = gradient.data() + i % s.channels;
    expected.push_back(double(row[kOfDy * s.channels]) * float(dy[i]) + double(row[kOfZ * s.channels]) * float(z[i]) +
                       row[kConstant * s.channels]);
  }
  const Buffer<T> dy_device(dy, "dy"), z_device(z, "z");
  const Buffer<float> rows(gradient, "gradient");
  Buffer<T> dz(z.size(), "dz");
  cuda_shim::clear_launches();
  norm_gradient<T>(dy_device.data(), z_device.data(), rows.data(), dz.data(), s, nullptr);
  expect_close(dz, expected, what + ": dz");
}

std::vector<Images> sizes() {
  std::vector<Images> all = {{1, 1, 1, 1},  {3, 1, 7, 3},  {5, 5, 3, 8},   {3, 9, 4, 17}, {2, 8, 8, 64},
                             {3, 5, 3, 33}, {1, 8, 8, 16}, {65, 2, 2, 301}};  // 301: two slabs, and more pixels than blocks
  if (!kQuick) all.insert(all.end(), {{5, 8, 8, 2}, {3, 8, 8, 1}, {2, 3, 2, 2056}, {65, 8, 8, 64}});
  return all;
}

}  // namespace

int main() {
  for_types([]<class T>() {
    int n = 0;
    for (const Images& s : sizes()) {
      ++n;
      const std::string type = std::string(name_of<T>()) + " " + text(s);
      // Of one value a channel there is no unbiased variance; torch refuses it.
      const Given given{n % 2 == 0, n % 3 != 0, n % 4 != 3 && s.pixels() > 1, n % 3 == 2};
      under_orders("statistics " + type, [&](const std::string& what) { test_statistics<T>(s, given, 0.5, what); });
      under_orders("gradient " + type, [&](const std::string& what) { test_gradient<T>(s, what); });
      if (s.pixels() > 20) test_statistics<T>(s, given, 1000, "mean 1000 times the spread, " + type);
    }
    cuda_shim::clear_launches();
    norm_statistics<T>(nullptr, {0, 4, 4, 8}, {}, nullptr, nullptr, nullptr);
    norm_gradient<T>(nullptr, nullptr, nullptr, nullptr, {0, 4, 4, 8}, nullptr);
    expect(cuda_shim::launches().empty(), "no images");
    if (kQuick) return;
    for (const Images& s : network_sizes()) {
      test_statistics<T>(s, {true, false, true}, 0, "network " + text(s));
      // Each block leaves 1 + 2 C floats, and has one pixel a thread here.
      expect_traffic<T>("norm_statistics", s, s.size(), (2 + kNormRows + 4) * s.channels);
      test_gradient<T>(s, "network " + text(s));
      expect_traffic<T>("norm_gradient", s, 3 * s.size(), kGradientRows * s.channels);
    }
  });
  for (int channels : {1, 17, 64, 300}) {
    for (int bits = 0; bits < 8; ++bits) {
      const Given given{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
      test_fixed(channels, given, "fixed, " + std::to_string(channels) + " channels, given " + std::to_string(bits));
    }
  }
  return finish();
}
