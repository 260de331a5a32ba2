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
void fill_depthwise(Kernels<T>*);
template <class T>
void fill_recurrent(Kernels<T>*);
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

// What the sums go over: calls body(output pixel, tap, input pixel) for every pixel of an output and every tap whose pixel
// exists.
template <class Body>
void for_taps(const ConvolutionShape& at, int64_t dilation, const Body& body) {
  const int64_t p = at.size / 2 * dilation;
  for (int64_t h = 0; h < at.out_height(); ++h)
    for (int64_t w = 0; w < at.out_width(); ++w)
      for (int64_t r = 0; r < at.size; ++r)
        for (int64_t s = 0; s < at.size; ++s) {
          const int64_t y = at.stride * h + dilation * r - p, x = at.stride * w + dilation * s - p;
          if (y < 0 || x < 0 || y >= at.height || x >= at.width) continue;
          body(h * at.out_width() + w, r * at.size + s, y * at.width + x);
        }
}

template <class T>
std::vector<T> part(const std::vector<T>& whole, int64_t index, int64_t parts) {
  const int64_t size = int64_t(whole.size()) / parts;
  return {whole.begin() + index * size, whole.begin() + (index + 1) * size};
}

// What comes before the convolution, of one image.
template <class T>
std::vector<T> plain_before(const std::vector<T>& x, const ImageShape& shape, Before before) {
  if (before == Before::kNothing) return x;
  if (before == Before::kRelu) {
    std::vector<T> y(x);
    for (T& value : y) value = value > 0 ? value : T(0);
    return y;
  }
  const ImageShape inner = shape_before(shape, before);
  std::vector<T> sum(inner.height * inner.width * inner.channels), count(sum.size());
  for (int64_t h = 0; h < shape.height; ++h)
    for (int64_t w = 0; w < shape.width; ++w)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t to = (h / 2 * inner.width + w / 2) * shape.channels + c;
        sum[to] += x[(h * shape.width + w) * shape.channels + c];
        count[to] += 1;
      }
  for (size_t i = 0; i < sum.size(); ++i) sum[i] /= count[i];
  return sum;
}

// The gradient of the input of plain_before.
template <class T>
std::vector<double> plain_before_gradient(const std::vector<double>& dp, const std::vector<T>& x, const ImageShape& shape,
                                          Before before) {
  std::vector<double> dx(x.size());
  const ImageShape inner = shape_before(shape, before);
  for (int64_t h = 0; h < shape.height; ++h)
    for (int64_t w = 0; w < shape.width; ++w)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t i = (h * shape.width + w) * shape.channels + c;
        if (before != Before::kMean2) {
          dx[i] = before == Before::kRelu && !(x[i] > 0) ? 0 : dp[i];
          continue;
        }
        const int64_t rows = std::min<int64_t>(2, shape.height - h / 2 * 2),
                      columns = std::min<int64_t>(2, shape.width - w / 2 * 2);
        dx[i] = dp[(h / 2 * inner.width + w / 2) * shape.channels + c] / double(rows * columns);
      }
  return dx;
}

// x: the images before `before`; `at` is the convolution after it.
template <class T>
void check_convolutions(const cpu::Kernels<T>& kernels, const ImageShape& x_shape, Before before, int64_t images,
                        const ConvolutionShape& at) {
  const int64_t x_size = x_shape.height * x_shape.width * x_shape.channels, pixels = at.out_height() * at.out_width();
  const int64_t inputs = at.height * at.width * at.in, taps = at.size * at.size;
  const auto x = random<T>(images * x_size, 1), dy = random<T>(images * pixels * at.out, 3), z = random<T>(dy.size(), 4);
  const auto a = random<T>(at.out, 5), b = random<T>(at.out, 6), c = random<T>(at.out, 7);
  // weight [out, in, r, s] in the packed orders of convolution.h
  const auto weight = random<T>(taps * at.in * at.out, 2);
  std::vector<T> packed(weight.size()), phases;
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < at.in; ++i)
      for (int64_t o = 0; o < at.out; ++o) packed[(t * at.in + i) * at.out + o] = weight[(o * at.in + i) * taps + t];
  for (int64_t p = 0; p < at.stride * at.stride; ++p)
    for (int64_t r = at.size - 1; r >= 0; --r)
      for (int64_t s = at.size - 1; s >= 0; --s) {
        if ((p / at.stride + at.size / 2 - r) % at.stride != 0 || (p % at.stride + at.size / 2 - s) % at.stride != 0) continue;
        for (int64_t o = 0; o < at.out; ++o)
          for (int64_t i = 0; i < at.in; ++i) phases.push_back(weight[(o * at.in + i) * taps + r * at.size + s]);
      }

  std::vector<double> y_expected(dy.size()), dweight_expected(weight.size()), dx_expected;
  for (int64_t n = 0; n < images; ++n) {
    const auto image = part(x, n, images);
    const auto in = plain_before(image, x_shape, before);
    std::vector<double> dp(inputs);
    for_taps(at, 1, [&](int64_t to, int64_t tap, int64_t from) {
      for (int64_t o = 0; o < at.out; ++o) {
        const int64_t place = (n * pixels + to) * at.out + o;
        const double dz = double(a[o]) * dy[place] + double(b[o]) * z[place] + c[o];
        for (int64_t i = 0; i < at.in; ++i) {
          const double w = packed[(tap * at.in + i) * at.out + o];
          y_expected[place] += double(in[from * at.in + i]) * w;
          dp[from * at.in + i] += dz * w;
          dweight_expected[(tap * at.in + i) * at.out + o] += double(in[from * at.in + i]) * dz;
        }
      }
    });
    const auto dx = plain_before_gradient(dp, image, x_shape, before);
    dx_expected.insert(dx_expected.end(), dx.begin(), dx.end());
  }

  std::vector<T> frames(images * frame_elements(at.input(), at.size), T(NAN));
  std::vector<T> dz_frames(images * frame_elements(at.output(), at.size), T(NAN));
  std::vector<T> y(dy.size(), T(NAN)), dp(images * inputs, T(NAN)), dx(x.size(), T(NAN)), dweight(weight.size(), T(NAN));
  kernels.frame_input(x.data(), frames.data(), x_shape, images, before, at.size);
  kernels.frame_gradient({dy.data(), z.data(), a.data(), b.data(), c.data()}, dz_frames.data(), at.output(), images, at.size);
  kernels.convolve(frames.data(), packed.data(), y.data(), at, images);
  kernels.convolve_input_gradient(dz_frames.data(), phases.data(), dp.data(), at, images);
  kernels.input_gradient(dp.data(), x.data(), dx.data(), x_shape, images, before, false);
  kernels.convolve_weight_gradient(frames.data(), dz_frames.data(), dweight.data(), at, images, false);
  expect("convolve", y, y_expected, at);
  expect("convolve_input_gradient", dx, dx_expected, at);
  expect("convolve_weight_gradient", dweight, dweight_expected, at);
  kernels.input_gradient(dp.data(), x.data(), dx.data(), x_shape, images, before, true);
  for (double& value : dx_expected) value *= 2;
  expect("input_gradient, added", dx, dx_expected, at);
  auto twice = dweight_expected;
  for (double& value : twice) value *= 2;
  kernels.convolve_weight_gradient(frames.data(), dz_frames.data(), dweight.data(), at, images, true);
  expect("convolve_weight_gradient, added", dweight, twice, at);
  if (at.size != 3 || at.stride != 1) return;
  const int64_t place = at.in * at.out;
  const int64_t size = kWinogradPlaces * weight_place(place);
  std::vector<T> u(size), du(2 * size, T(NAN)), workspace(winograd_workspace(at), T(NAN));
  kernels.winograd_weight(packed.data(), u.data(), place, 0, place / 2);  // in two parts, as two threads would
  kernels.winograd_weight(packed.data(), u.data(), place, place / 2, place - place / 2);
  kernels.winograd_convolve(frames.data(), u.data(), y.data(), at, images, workspace.data());
  // In two shares, of which the second has everything twice.
  for (const bool add : {false, true}) {
    kernels.winograd_weight_gradient(frames.data(), dz_frames.data(), du.data() + size, at, images, add, workspace.data());
  }
  kernels.winograd_weight_gradient(frames.data(), dz_frames.data(), du.data(), at, images, false, workspace.data());
  kernels.add_shares(du.data(), 2, kWinogradPlaces, weight_place(place), 0, place / 2);
  kernels.add_shares(du.data(), 2, kWinogradPlaces, weight_place(place), place / 2, place - place / 2);
  for (double& value : dweight_expected) value *= 3;
  kernels.winograd_finish(du.data(), dweight.data(), place, 0, place / 2);
  kernels.winograd_finish(du.data(), dweight.data(), place, place / 2, place - place / 2);
  expect("winograd_convolve", y, y_expected, at);
  expect("winograd_weight_gradient", dweight, dweight_expected, at);
}

template <class T>
void check_depthwise(const cpu::Kernels<T>& kernels, const DepthwiseShape& shape, int64_t images) {
  const auto [height, width, channels] = shape.image;
  const int64_t pixels = height * width, taps = shape.size * shape.size;
  const ConvolutionShape at{height, width, channels, channels, shape.size};
  const auto x = random<T>(images * pixels * channels, 1), dy = random<T>(x.size(), 2), weight = random<T>(taps * channels, 3);
  std::vector<double> y_expected(x.size()), dweight_expected(weight.size());
  for (int64_t n = 0; n < images; ++n) {
    for_taps(at, shape.dilation, [&](int64_t to, int64_t tap, int64_t from) {
      for (int64_t c = 0; c < channels; ++c) {
        const double value = x[(n * pixels + from) * channels + c];
        y_expected[(n * pixels + to) * channels + c] += value * weight[tap * channels + c];
        dweight_expected[tap * channels + c] += value * dy[(n * pixels + to) * channels + c];
      }
    });
  }
  std::vector<T> frames(images * frame_elements(shape.image, shape.extent()), T(NAN)), y(x.size(), T(NAN));
  std::vector<T> dweight(weight.size(), T(NAN));
  kernels.frame_input(x.data(), frames.data(), shape.image, images, Before::kNothing, shape.extent());
  kernels.depthwise(frames.data(), weight.data(), y.data(), shape, images);
  kernels.depthwise_weight_gradient(frames.data(), dy.data(), dweight.data(), shape, images, false);
  expect("depthwise", y, y_expected, at);
  expect("depthwise_weight_gradient", dweight, dweight_expected, at);
  kernels.depthwise_weight_gradient(frames.data(), dy.data(), dweight.data(), shape, images, true);
  for (double& value : dweight_expected) value *= 2;
  expect("depthwise_weight_gradient, added", dweight, dweight_expected, at);
}

// A node of `num` sources, every other one pooled.
template <class T>
void check_node(const cpu::Kernels<T>& kernels, const ImageShape& shape, int64_t num) {
  const int64_t size = shape.height * shape.width * shape.channels;
  const ConvolutionShape at{shape.height, shape.width, shape.channels, shape.channels, 3};
  const auto x = random<T>(size, 1), bias = random<T>(shape.channels, 2);
  std::vector<std::vector<T>> images, scales;
  std::vector<const T*> image_pointers, scale_pointers;
  std::vector<double> forward(size), backward(size), gates_expected(num), gates(num);
  bool pooled[16];
  const auto index = [&](int64_t h, int64_t w, int64_t c) { return (h * shape.width + w) * shape.channels + c; };
  const auto window = [](int64_t i, int64_t side) { return std::min(i + 1, side - 1) - std::max<int64_t>(i - 1, 0) + 1; };
  for (int64_t i = 0; i < size; ++i) forward[i] = bias[i % shape.channels];
  for (int64_t k = 0; k < num; ++k) {
    images.push_back(random<T>(size, unsigned(10 + k)));
    scales.push_back(random<T>(shape.channels, unsigned(30 + k)));
    pooled[k] = k % 2 == 1;
    for (int64_t h = 0; h < shape.height; ++h)
      for (int64_t w = 0; w < shape.width; ++w)
        for (int64_t c = 0; c < shape.channels; ++c) {
          const double scale = scales[k][c], value = images[k][index(h, w, c)];
          if (!pooled[k]) {
            forward[index(h, w, c)] += scale * value;
            backward[index(h, w, c)] += scale * value;
            gates_expected[k] += value * x[index(h, w, c)];
            continue;
          }
          for (int64_t r = std::max<int64_t>(h - 1, 0); r <= std::min(h + 1, shape.height - 1); ++r)
            for (int64_t s = std::max<int64_t>(w - 1, 0); s <= std::min(w + 1, shape.width - 1); ++s) {
              const double count = double(window(h, shape.height) * window(w, shape.width));
              forward[index(h, w, c)] += scale * images[k][index(r, s, c)] / count;
              backward[index(r, s, c)] += scale * value / count;
              gates_expected[k] += value / count * x[index(r, s, c)];
            }
        }
  }
  for (int64_t k = 0; k < num; ++k) {
    image_pointers.push_back(images[k].data());
    scale_pointers.push_back(scales[k].data());
  }
  const Sources<T> sources{num, image_pointers.data(), scale_pointers.data(), pooled};
  std::vector<T> y(size, T(NAN)), workspace(node_workspace(shape, num), T(NAN));
  kernels.node_forward(sources, bias.data(), y.data(), shape, workspace.data());
  expect("node_forward", y, forward, at);
  kernels.node_backward(sources, x.data(), y.data(), gates.data(), shape, workspace.data());
  expect("node_backward", y, backward, at);
  expect("gate gradients", std::vector<T>(gates.begin(), gates.end()), gates_expected, at);
  kernels.node_backward(sources, static_cast<const T*>(nullptr), y.data(), nullptr, shape, workspace.data());
  expect("node_backward without gates", y, backward, at);
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

// A node of a recurrent cell: every other state is a source; picks: operations of each, one after the other in turn. The rows go
// in two ranges, as two threads would take them.
template <class T>
void check_recurrent(const cpu::Kernels<T>& kernels, int64_t batch, int64_t units, int num_sources, int picks, double scale) {
  const int64_t size = batch * units, num_states = 2 * num_sources + 1;
  const ConvolutionShape at{batch, units, num_sources, picks, 0};
  RecurrentNode<T> node{batch, units, num_sources, {}};
  const auto states = random<T>(num_states * size, 1), dout = random<T>(size, 2);
  auto pre = random<T>(num_sources * 2 * size, 3), dstates = random<T>(states.size(), 4);
  for (T& value : pre) value *= T(scale);
  std::vector<double> out_expected(size), dstates_expected(dstates.begin(), dstates.end()), dpre_expected(pre.size());
  std::vector<double> sums_expected(num_recurrent_sums(node));
  for (int k = 0; k < num_sources; ++k) {
    node.source[k].state = 2 * k + 1;
    for (int pick = 0; pick < picks; ++pick) {
      const int op = (k + pick) % kNumRecurrentOps;
      node.source[k].picked |= 1u << op;
      node.source[k].gate[op] = T(0.5 + 0.25 * pick);
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t z = (k * batch + i / units) * 2 * units + i % units, s = (2 * k + 1) * size + i;
      const double state = states[s], u = pre[z + units], c = 1 / (1 + std::exp(-double(pre[z])));
      const double f[] = {u, std::tanh(u), 1 / (1 + std::exp(-u)), u > 0 ? u : 0};
      const double slope[] = {1, 1 - f[1] * f[1], f[2] * (1 - f[2]), u > 0 ? 1. : 0.};
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if ((node.source[k].picked >> op & 1) == 0) continue;
        const double y = state + c * (f[op] - state), dy = node.source[k].gate[op] * double(dout[i]);
        out_expected[i] += node.source[k].gate[op] * y;
        dpre_expected[z] += dy * (f[op] - state) * c * (1 - c);
        dpre_expected[z + units] += dy * c * slope[op];
        dstates_expected[s] += dy * (1 - c);
        sums_expected[k * kNumRecurrentOps + op] += dout[i] * y;
      }
    }
  }
  for (const T value : dout) sums_expected.back() += value;
  std::vector<T> out(size, T(NAN)), dpre(pre.size(), T(NAN));
  std::vector<double> sums(sums_expected.size());
  const auto backward = [&](double* to) {
    kernels.recurrent_backward(node, states.data(), pre.data(), dout.data(), dstates.data(), dpre.data(), to, 0, batch / 2);
    kernels.recurrent_backward(node, states.data(), pre.data(), dout.data(), dstates.data(), dpre.data(), to, batch / 2, batch);
  };
  kernels.recurrent_forward(node, states.data(), pre.data(), out.data(), 0, batch / 2);
  kernels.recurrent_forward(node, states.data(), pre.data(), out.data(), batch / 2, batch);
  backward(sums.data());
  expect("recurrent_forward", out, out_expected, at);
  expect("recurrent_backward, states", dstates, dstates_expected, at);
  expect("recurrent_backward, pre-activations", dpre, dpre_expected, at);
  expect("recurrent_backward, sums", std::vector<T>(sums.begin(), sums.end()), sums_expected, at);
  const auto before = dpre;
  backward(nullptr);
  expect("recurrent_backward without sums", dpre, std::vector<double>(before.begin(), before.end()), at);
}

template <class T>
void check_all() {
  cpu::Kernels<T> kernels{};
  cpu::ADVNAS_ISA::fill_cell(&kernels);
  cpu::ADVNAS_ISA::fill_convolution(&kernels);
  cpu::ADVNAS_ISA::fill_depthwise(&kernels);
  cpu::ADVNAS_ISA::fill_recurrent(&kernels);
  cpu::ADVNAS_ISA::fill_winograd(&kernels);
  for (int64_t size : {1, 3, 5}) {
    for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {5, 4}, {8, 8}, {9, 13}, {4, 33}}) {
      for (auto [in, out] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {8, 8}, {16, 16}, {17, 5}, {12, 40}}) {
        const ImageShape x{height, width, in};
        check_convolutions(kernels, x, Before::kRelu, 2, {height, width, in, out, size});
        check_convolutions(kernels, x, Before::kNothing, 1, {height, width, in, out, size, 2});
        const ImageShape inner = shape_before(x, Before::kMean2);
        check_convolutions(kernels, x, Before::kMean2, 1, {inner.height, inner.width, in, out, size});
      }
    }
  }
  for (int64_t size : {3, 5}) {
    for (int64_t channels : {1, 8, 19}) {
      for (int64_t dilation : {1, 2}) check_depthwise(kernels, {{7, 5, channels}, size, dilation}, 2);
    }
  }
  for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {2, 2}, {7, 3}, {8, 8}}) {
    for (int64_t channels : {1, 4, 8, 17, 32}) {
      for (int64_t num : {0, 1, 2, 3, 4, 9}) check_node(kernels, {height, width, channels}, num);
    }
  }
  for (int64_t pixels : {1, 63, 64, 65, 300}) {
    for (int64_t channels : {1, 8, 19}) check_sums(kernels, pixels, channels);
  }
  for (int64_t batch : {1, 2, 5}) {
    for (int64_t units : {1, 4, 7, 8, 16, 19, 67}) {
      for (int num_sources : {0, 1, 4}) {
        for (int picks : {1, 2, 4}) check_recurrent(kernels, batch, units, num_sources, picks, 1);
      }
    }
  }
  for (double scale : {1e-3, 1e2, 1e4}) check_recurrent(kernels, 3, 67, kMaxRecurrentSources, 1, scale);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
