// Dense, Winograd and depthwise convolutions with all gradients, and their prologues.
#include "check.h"

namespace advnas {
namespace {

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

// The prologue of the convolution, of one image.
template <class T>
std::vector<T> plain_prologue(const std::vector<T>& x, const ImageShape& shape, Prologue prologue) {
  if (prologue == Prologue::kNothing) return x;
  if (prologue == Prologue::kRelu) {
    std::vector<T> y(x);
    for (T& value : y) value = value > 0 ? value : T(0);
    return y;
  }
  const ImageShape inner = shape_after_prologue(shape, prologue);
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

// The gradient of the input of plain_prologue.
template <class T>
std::vector<double> plain_prologue_gradient(const std::vector<double>& dp, const std::vector<T>& x, const ImageShape& shape,
                                            Prologue prologue) {
  std::vector<double> dx(x.size());
  const ImageShape inner = shape_after_prologue(shape, prologue);
  for (int64_t h = 0; h < shape.height; ++h)
    for (int64_t w = 0; w < shape.width; ++w)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t i = (h * shape.width + w) * shape.channels + c;
        if (prologue != Prologue::kMean2) {
          dx[i] = prologue == Prologue::kRelu && !(x[i] > 0) ? 0 : dp[i];
          continue;
        }
        const int64_t rows = std::min<int64_t>(2, shape.height - h / 2 * 2),
                      columns = std::min<int64_t>(2, shape.width - w / 2 * 2);
        dx[i] = dp[(h / 2 * inner.width + w / 2) * shape.channels + c] / double(rows * columns);
      }
  return dx;
}

// x: the images before the prologue; `at` is the convolution after it.
template <class T>
void check_convolutions(const cpu::Kernels<T>& kernels, const ImageShape& x_shape, Prologue prologue, int64_t images,
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
    const auto in = plain_prologue(image, x_shape, prologue);
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
    const auto dx = plain_prologue_gradient(dp, image, x_shape, prologue);
    dx_expected.insert(dx_expected.end(), dx.begin(), dx.end());
  }

  std::vector<T> frames(images * frame_elements(at.input(), at.size), T(NAN));
  std::vector<T> dz_frames(images * frame_elements(at.output(), at.size), T(NAN));
  std::vector<T> y(dy.size(), T(NAN)), dp(images * inputs, T(NAN)), dx(x.size(), T(NAN)), dweight(weight.size(), T(NAN));
  kernels.frame_input(x.data(), frames.data(), x_shape, images, prologue, at.size);
  kernels.frame_gradient({dy.data(), z.data(), {a.data(), b.data(), c.data()}}, dz_frames.data(), at.output(), images, at.size);
  kernels.convolve(frames.data(), packed.data(), y.data(), at, images);
  kernels.convolve_input_gradient(dz_frames.data(), phases.data(), dp.data(), at, images);
  kernels.input_gradient(dp.data(), x.data(), dx.data(), x_shape, images, prologue, false);
  kernels.convolve_weight_gradient(frames.data(), dz_frames.data(), dweight.data(), at, images, false);
  expect("convolve", y, y_expected, at);
  expect("convolve_input_gradient", dx, dx_expected, at);
  expect("convolve_weight_gradient", dweight, dweight_expected, at);
  kernels.input_gradient(dp.data(), x.data(), dx.data(), x_shape, images, prologue, true);
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
  // Two convolutions of the same frames; the other one has half the weight, and half the gradient.
  std::vector<T> half_u(u), half_y(y.size(), T(NAN)), half_dz(dz_frames), half_du(size, T(NAN));
  for (auto* values : {&half_u, &half_dz})
    std::transform(values->begin(), values->end(), values->begin(), [](T v) { return v / 2; });
  const T *us[] = {u.data(), half_u.data()}, *gradients[] = {dz_frames.data(), half_dz.data()};
  T *ys[] = {y.data(), half_y.data()}, *first_share[] = {du.data(), half_du.data()}, *second_share[] = {du.data() + size};
  kernels.winograd_convolve(frames.data(), us, ys, 2, at, images, workspace.data());
  // In two shares, of which the second has everything twice.
  for (const bool add : {false, true}) {
    kernels.winograd_weight_gradient(frames.data(), gradients, second_share, 1, at, images, add, workspace.data());
  }
  kernels.winograd_weight_gradient(frames.data(), gradients, first_share, 2, at, images, false, workspace.data());
  std::vector<T> half(dweight.size(), T(NAN));
  kernels.winograd_finish(half_du.data(), half.data(), place, 0, place);
  for (T& value : half) value *= 2;
  expect("winograd_weight_gradient, two", half, dweight_expected, at);
  kernels.add_shares(du.data(), 2, kWinogradPlaces, weight_place(place), 0, place / 2);
  kernels.add_shares(du.data(), 2, kWinogradPlaces, weight_place(place), place / 2, place - place / 2);
  for (double& value : dweight_expected) value *= 3;
  kernels.winograd_finish(du.data(), dweight.data(), place, 0, place / 2);
  kernels.winograd_finish(du.data(), dweight.data(), place, place / 2, place - place / 2);
  expect("winograd_convolve", y, y_expected, at);
  for (T& value : half_y) value *= 2;
  expect("winograd_convolve, two", half_y, y_expected, at);
  expect("winograd_weight_gradient", dweight, dweight_expected, at);
}

template <class T>
void check_depthwise(const cpu::Kernels<T>& kernels, const DepthwiseShape& shape, int64_t images) {
  const int64_t height = shape.image.height, width = shape.image.width, channels = shape.image.channels;
  const int64_t pixels = height * width, taps = shape.size * shape.size;
  const ConvolutionShape at{height, width, channels, channels, shape.size, shape.stride};
  const int64_t outputs = at.out_height() * at.out_width();
  const auto x = random<T>(images * pixels * channels, 1), dy = random<T>(images * outputs * channels, 2);
  const auto weight = random<T>(taps * channels, 3);
  std::vector<double> y_expected(dy.size()), dx_expected(x.size()), dweight_expected(weight.size());
  for (int64_t n = 0; n < images; ++n) {
    for_taps(at, shape.dilation, [&](int64_t to, int64_t tap, int64_t from) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t input = (n * pixels + from) * channels + c, output = (n * outputs + to) * channels + c;
        y_expected[output] += double(x[input]) * weight[tap * channels + c];
        dx_expected[input] += double(dy[output]) * weight[tap * channels + c];
        dweight_expected[tap * channels + c] += double(x[input]) * dy[output];
      }
    });
  }
  std::vector<T> frames(images * frame_elements(shape.image, shape.extent()), T(NAN)), y(dy.size(), T(NAN));
  std::vector<T> dx(x.size(), T(NAN)), dweight(weight.size(), T(NAN)), rotated(weight.size());
  kernels.frame_input(x.data(), frames.data(), shape.image, images, Prologue::kNothing, shape.extent());
  kernels.depthwise(frames.data(), weight.data(), y.data(), shape, images);
  kernels.depthwise_weight_gradient(frames.data(), dy.data(), dweight.data(), shape, images, false);
  expect("depthwise", y, y_expected, at);
  expect("depthwise_weight_gradient", dweight, dweight_expected, at);
  kernels.depthwise_weight_gradient(frames.data(), dy.data(), dweight.data(), shape, images, true);
  for (double& value : dweight_expected) value *= 2;
  expect("depthwise_weight_gradient, added", dweight, dweight_expected, at);
  for (int64_t tap = 0; tap < taps; ++tap) {
    std::copy_n(weight.data() + tap * channels, channels, rotated.data() + (taps - 1 - tap) * channels);
  }
  std::fill(frames.begin(), frames.end(), T(NAN));
  kernels.depthwise_spread(dy.data(), frames.data(), shape, images);
  kernels.depthwise(frames.data(), rotated.data(), dx.data(), shape.dense(), images);
  expect("depthwise_spread", dx, dx_expected, at);
}

template <class T>
void check_all() {
  const auto kernels = all_kernels<T>();
  for (int64_t size : {1, 3, 5}) {
    for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {5, 4}, {8, 8}, {9, 13}, {4, 33}}) {
      for (auto [in, out] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {8, 8}, {16, 16}, {17, 5}, {12, 40}}) {
        const ImageShape x{height, width, in};
        check_convolutions(kernels, x, Prologue::kRelu, 2, {height, width, in, out, size});
        check_convolutions(kernels, x, Prologue::kNothing, 1, {height, width, in, out, size, 2});
        const ImageShape inner = shape_after_prologue(x, Prologue::kMean2);
        check_convolutions(kernels, x, Prologue::kMean2, 1, {inner.height, inner.width, in, out, size});
      }
    }
  }
  for (int64_t size : {3, 5}) {
    for (int64_t channels : {1, 8, 19}) {
      for (int64_t dilation : {1, 2}) {
        for (int64_t stride : {1, 2, 3}) check_depthwise(kernels, {{7, 5, channels}, size, dilation, stride}, 2);
        check_depthwise(kernels, {{4, 10, channels}, size, dilation, 2}, 1);
      }
    }
  }
}

}  // namespace

void check_all_convolutions() {
  check_all<float>();
  check_all<double>();
}

}  // namespace advnas
