// The fused convolutions against the sums of their headers, in double. Compile with -DADVNAS_ISA=<set> and that set's flags,
// together with csrc/kernels/cpu/conv*.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/kernels/conv1x1.h"
#include "../../csrc/kernels/conv3x3.h"

#define ADVNAS_STRING_OF(name) #name
#define ADVNAS_STRING(name) ADVNAS_STRING_OF(name)

namespace {

using namespace advnas;
namespace isa = advnas::cpu::ADVNAS_ISA;

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

// Against the largest entry: sums of many terms are no better than that.
template <class T>
void check_close(const std::vector<T>& got, const std::vector<double>& want, double tolerance, const std::string& what) {
  double largest = 0, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    const double error = std::abs(double(got[i]) - want[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  check(worst <= tolerance * largest, what + ": error " + std::to_string(worst) + " of " + std::to_string(largest));
}

struct Case {
  int64_t size, images;
  ConvShape shape;
  double scale;
  bool relu, accumulate, channels_last;
};

template <class T>
struct Tolerance;
template <>
struct Tolerance<float> {
  static constexpr double output = 1e-5, weight = 5e-5, moments = 2e-5;
};
template <>
struct Tolerance<double> {
  static constexpr double output = 1e-13, weight = 1e-12, moments = 1e-12;
};

WeightStrides strides_of(const Case& c) {
  const int64_t taps = c.size * c.size;
  if (c.channels_last) return {taps * c.shape.in, 1, c.size * c.shape.in, c.shape.in};
  return {taps * c.shape.in, taps, c.size, 1};
}

// Calls body(output element, input element, weight element) for every product of the convolution.
template <class Body>
void for_products(const Case& c, const Body& body) {
  const ConvShape& s = c.shape;
  const WeightStrides stride = strides_of(c);
  const int64_t pad = c.size / 2;
  for (int64_t n = 0; n < c.images; ++n) {
    for (int64_t h = 0; h < s.height; ++h) {
      for (int64_t w = 0; w < s.width; ++w) {
        for (int64_t r = std::max<int64_t>(0, pad - h); r < std::min(c.size, s.height + pad - h); ++r) {
          for (int64_t q = std::max<int64_t>(0, pad - w); q < std::min(c.size, s.width + pad - w); ++q) {
            const int64_t out_pixel = (n * s.height + h) * s.width + w;
            const int64_t in_pixel = (n * s.height + h + r - pad) * s.width + w + q - pad;
            for (int64_t o = 0; o < s.out; ++o) {
              for (int64_t i = 0; i < s.in; ++i) {
                body(out_pixel * s.out + o, in_pixel * s.in + i,
                     o * stride.out + i * stride.in + r * stride.row + q * stride.column);
              }
            }
          }
        }
      }
    }
  }
}

template <class T>
void run(const Case& c) {
  const ConvKernels<T> kernels = c.size == 3 ? isa::conv3x3_kernels<T>() : isa::conv1x1_kernels<T>();
  const ConvShape& s = c.shape;
  const WeightStrides strides = strides_of(c);
  const int64_t pixels = c.images * s.height * s.width, in = s.in, out = s.out;
  const std::string name = std::string(sizeof(T) == 4 ? "float" : "double") + " " + std::to_string(c.size) + "x" +
                           std::to_string(c.size) + " images " + std::to_string(c.images) + " of " + std::to_string(s.height) +
                           "x" + std::to_string(s.width) + ", channels " + std::to_string(in) + " -> " + std::to_string(out) +
                           ", scale " + std::to_string(c.scale) + (c.relu ? ", relu " : " ");

  std::mt19937_64 generator(uint64_t(pixels * 131 + in * 17 + out + c.size));
  std::normal_distribution<double> normal;
  const auto random = [&](int64_t size, double scale, double mean = 0) {
    std::vector<T> values(size);
    for (T& v : values) v = T(scale * (mean + normal(generator)));
    return values;
  };
  const std::vector<T> x = random(pixels * in, c.scale, 0.5), weight = random(out * in * c.size * c.size, c.scale == 0 ? 1 : 0.1);
  const std::vector<T> dy = random(pixels * out, c.scale), of_dy = random(out, 1), of_z = random(out, 0.1);
  const std::vector<T> constant = random(out, c.scale * 0.1), dx_before = random(pixels * in, c.scale);

  // In double.
  std::vector<double> rectified(x.begin(), x.end()), want_z(pixels * out), want_dz(pixels * out), want_dx(pixels * in);
  std::vector<double> want_dw(weight.size()), want_mean(out), want_m2(out);
  if (c.relu) {
    for (double& v : rectified) v = std::max(v, 0.0);
  }
  for_products(c, [&](int64_t o, int64_t i, int64_t w) { want_z[o] += rectified[i] * double(weight[w]); });
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t o = 0; o < out; ++o) want_mean[o] += want_z[p * out + o] / double(pixels);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t o = 0; o < out; ++o) want_m2[o] += std::pow(want_z[p * out + o] - want_mean[o], 2);
  }

  // Memory around what a kernel may touch must stay as it is.
  constexpr int64_t kGuard = 64;
  constexpr T kMark = T(12345);
  const auto guarded = [&](int64_t size) { return std::vector<T>(size + kGuard, kMark); };
  const auto check_guard = [&](const std::vector<T>& values, const char* what) {
    check(std::all_of(values.end() - kGuard, values.end(), [&](T v) { return v == kMark; }), name + "writes past " + what);
  };
  std::vector<T> packed = guarded(kernels.packed_size(in, out)), transposed = guarded(kernels.packed_size(out, in));
  kernels.pack(weight.data(), strides, in, out, packed.data());
  kernels.pack_transposed(weight.data(), strides, in, out, transposed.data());
  check_guard(packed, "packed");
  check_guard(transposed, "transposed");

  std::vector<T> workspace = guarded(kernels.workspace_size(s)), z = guarded(pixels * out), dx = guarded(pixels * in);
  std::fill(workspace.begin(), workspace.end() - kGuard, T(NAN));  // nothing may be read that was not written
  std::vector<double> mean(out, NAN), m2(out, NAN);
  kernels.forward(x.data(), c.relu, packed.data(), z.data(), {mean.data(), m2.data()}, c.images, s, workspace.data());
  check_close(z, want_z, Tolerance<T>::output, name + "z");
  check_close(mean, want_mean, Tolerance<T>::moments, name + "mean");
  check_close(m2, want_m2, Tolerance<T>::moments, name + "m2");
  check_guard(z, "z");
  std::vector<T> again = guarded(pixels * out);
  kernels.forward(x.data(), c.relu, packed.data(), again.data(), {nullptr, nullptr}, c.images, s, workspace.data());
  check(z == again, name + "z without moments is the same");

  // The z that the gradient reads is the one above, so that its own error is not counted twice.
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t o = 0; o < out; ++o) {
      const int64_t at = p * out + o;
      want_dz[at] = double(of_dy[o]) * dy[at] + double(of_z[o]) * z[at] + constant[o];
    }
  }
  for_products(c, [&](int64_t o, int64_t i, int64_t w) {
    want_dx[i] += want_dz[o] * double(weight[w]);
    want_dw[w] += want_dz[o] * rectified[i];
  });
  for (size_t i = 0; i < want_dx.size(); ++i) {
    if (c.relu && !(x[i] > 0)) want_dx[i] = 0;
    if (c.accumulate) want_dx[i] += dx_before[i];
  }

  const ConvGradient<T> gradient{dy.data(), z.data(), of_dy.data(), of_z.data(), constant.data()};
  if (c.accumulate) std::copy(dx_before.begin(), dx_before.end(), dx.begin());
  std::fill(workspace.begin(), workspace.end() - kGuard, T(NAN));
  // Two packed gradients of a part of the images each: the unpacked one is their sum.
  const int64_t size = kernels.packed_size(in, out), half = c.images / 2;
  std::vector<T> dpacked = guarded(2 * size), dweight = guarded(int64_t(weight.size()));
  std::fill(dpacked.begin(), dpacked.end() - kGuard, T(0));
  for (int64_t part = 0; part < 2; ++part) {
    const int64_t first = part * half, images = part == 0 ? half : c.images - half, at = first * s.height * s.width;
    kernels.backward({gradient.dy + at * out, gradient.z + at * out, gradient.of_dy, gradient.of_z, gradient.constant},
                     x.data() + at * in, c.relu, transposed.data(), dx.data() + at * in, c.accumulate,
                     dpacked.data() + part * size, images, s, workspace.data());
  }
  kernels.unpack_gradient(dpacked.data(), 2, in, out, dweight.data(), strides);
  check_close(dx, want_dx, Tolerance<T>::output, name + "dx");
  check_close(dweight, want_dw, Tolerance<T>::weight, name + "dweight");
  check_guard(dx, "dx");
  check_guard(dpacked, "dpacked");
  check_guard(dweight, "dweight");
  check_guard(workspace, "workspace");

  // Each gradient without the other.
  std::vector<T> dx_alone = guarded(pixels * in), dpacked_alone(size), dpacked_both(size);
  kernels.backward(gradient, x.data(), c.relu, transposed.data(), dx_alone.data(), false, dpacked_both.data(), c.images, s,
                   workspace.data());
  std::vector<T> dx_only = guarded(pixels * in);
  kernels.backward(gradient, x.data(), c.relu, transposed.data(), dx_only.data(), false, nullptr, c.images, s, workspace.data());
  kernels.backward(gradient, x.data(), c.relu, nullptr, nullptr, false, dpacked_alone.data(), c.images, s, workspace.data());
  check(dx_only == dx_alone, name + "dx without dweight is the same");
  check(dpacked_alone == dpacked_both, name + "dweight without dx is the same");
}

// A mean that is large beside the spread must not cancel the sum of squares.
void run_large_mean() {
  const ConvShape shape{16, 16, 8, 8};
  for (const int64_t size : {1, 3}) {
    const ConvKernels<float> kernels = size == 3 ? isa::conv3x3_kernels<float>() : isa::conv1x1_kernels<float>();
    const Case c{size, 1, shape, 1, false, false, false};
    std::vector<float> x(256 * 8), weight(8 * 8 * size * size, 0.0f), z(256 * 8);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& v : x) v = 100 + 0.1f * normal(generator);
    for (int64_t o = 0; o < 8; ++o) weight[(o * 8 + o) * size * size + size * size / 2] = 1;
    std::vector<float> packed(kernels.packed_size(8, 8)), workspace(kernels.workspace_size(shape));
    std::vector<double> mean(8), m2(8), want(8);
    kernels.pack(weight.data(), strides_of(c), 8, 8, packed.data());
    kernels.forward(x.data(), false, packed.data(), z.data(), {mean.data(), m2.data()}, 1, shape, workspace.data());
    for (int64_t o = 0; o < 8; ++o) {
      double average = 0;
      for (int64_t p = 0; p < 256; ++p) average += double(z[p * 8 + o]) / 256;
      for (int64_t p = 0; p < 256; ++p) want[o] += std::pow(double(z[p * 8 + o]) - average, 2);
    }
    check_close(m2, want, 1e-4, "m2 of a large mean");
  }
}

}  // namespace

int main() {
  const ConvShape shapes[] = {{8, 8, 16, 16}, {16, 16, 32, 32}, {9, 13, 16, 16}, {1, 1, 16, 16}, {4, 4, 3, 3},
                              {5, 7, 17, 17}, {7, 3, 3, 16},    {6, 10, 16, 5},  {3, 2, 8, 40},  {32, 32, 16, 16},
                              {12, 4, 33, 9}, {8, 8, 64, 64},   {1, 9, 1, 1}};
  bool last = false;
  for (const ConvShape& shape : shapes) {
    for (const int64_t size : {1, 3}) {
      for (const int64_t images : {1, 7}) {
        if (images * shape.height * shape.width * shape.in * shape.out > 1 << 20 && images > 1) continue;
        last = !last;
        run<float>({size, images, shape, 1, true, true, last});
        run<float>({size, images, shape, 1, false, false, !last});
        run<double>({size, images, shape, 1, true, last, last});
      }
    }
  }
  for (const double scale : {1e-4, 1e4, 0.0}) {
    for (const int64_t size : {1, 3}) run<float>({size, 5, {8, 8, 16, 16}, scale, true, true, false});
  }
  run<float>({3, 0, {8, 8, 16, 16}, 1, true, true, false});
  run<float>({1, 0, {8, 8, 16, 16}, 1, true, true, false});
  run_large_mean();
  std::printf("%s: %d passed, %d failed\n", ADVNAS_STRING(ADVNAS_ISA), passed, failed);
  return failed == 0 ? 0 : 1;
}
