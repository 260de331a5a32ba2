// What the test programs of the kernels share: values, comparison with a formula in double, several orders of the threads,
// traffic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "../../csrc/kernels/channels_last.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace check {

using cuda_shim::Buffer;
template <class T>
using Buffers = std::deque<Buffer<T>>;

// Small sizes, one order, two types: for test_mutations.py, which builds and runs a program for each mutation.
#ifdef CUDA_SHIM_QUICK
inline constexpr bool kQuick = true;
#else
inline constexpr bool kQuick = false;
#endif

inline int passed = 0, failed = 0;
inline uint64_t digest = 0;  // of the results of a case

inline void expect(bool ok, const std::string& what) {
  if (!ok && failed < 40) std::printf("FAILED %s, seed %u\n", what.c_str(), cuda_shim::seed);
  ok ? ++passed : ++failed;
}

inline int finish() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}

template <class T>
inline const char* name_of() {
  return std::is_same_v<T, float> ? "float" : std::is_same_v<T, __half> ? "half" : "bfloat16";
}

// f.template operator()<T>() for each type of a tensor.
template <class F>
void for_types(F f) {
  f.template operator()<float>();
  f.template operator()<__half>();
  if constexpr (!kQuick) f.template operator()<__nv_bfloat16>();
}

// Runs a case under several orders of the threads; its bits must not depend on them.
template <class F>
void under_orders(const std::string& what, F one) {
  uint64_t first = 0;
  for (unsigned seed = 1; seed <= (kQuick ? 1u : 3u); ++seed) {
    cuda_shim::seed = seed;
    digest = 0;
    one(what);
    if (seed == 1) first = digest;
    expect(digest == first, what + ": the same bits in every order");
  }
  cuda_shim::seed = 1;
}

// The i-th of a stream of numbers in [-1, 1].
inline double random(uint64_t i, uint64_t stream) {
  uint64_t v = (i + 1) * 0x9e3779b97f4a7c15u + stream * 0xd1b54a32d192ed03u;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
  v = (v ^ v >> 27) * 0x94d049bb133111ebu;
  return double((v ^ v >> 31) >> 11) / double(uint64_t(1) << 52) - 1;
}

template <class T>
std::vector<T> noise(int64_t size, uint64_t stream, double mean = 0) {
  std::vector<T> values;
  for (int64_t i = 0; i < size; ++i) values.push_back(T(float(mean + random(uint64_t(i), stream))));
  return values;
}

// Some entries are 0, where a ReLU must not pass a gradient.
template <class T>
std::vector<T> noise_with_zeros(int64_t size, uint64_t stream) {
  std::vector<T> values = noise<T>(size, stream);
  for (size_t i = 3; i < values.size(); i += 7) values[i] = T(i % 2 ? 0.0f : -0.0f);
  return values;
}

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}
template <>
inline std::vector<double> doubles(const std::vector<__half>& values) {
  std::vector<double> result;
  for (__half v : values) result.push_back(float(v));
  return result;
}
template <>
inline std::vector<double> doubles(const std::vector<__nv_bfloat16>& values) {
  std::vector<double> result;
  for (__nv_bfloat16 v : values) result.push_back(float(v));
  return result;
}
template <class T>
std::vector<double> doubles(const Buffer<T>& buffer) {
  return doubles(buffer.host());
}

// The spacing of numbers of a type beside 1: float sums may round to the one or the other neighbour.
template <class T>
inline constexpr double kSpacing = std::is_same_v<T, float>    ? 1e-6
                                   : std::is_same_v<T, __half> ? 0x1p-10
                                                               : 0x1p-7;

// And beside 0.
template <class T>
inline constexpr double kSmallest = std::is_same_v<T, __half> ? 0x1p-24 : 1e-38;

template <class T>
void add_to_digest(const std::vector<T>& values) {
  for (const T& value : values) {
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    for (unsigned char byte : bytes) digest = (digest ^ byte) * 0x100000001b3u;
  }
}

// Each entry within the spacing of T, and within 1e-5 of `magnitude`: how large the terms are that it is a sum of.
template <class T>
void expect_close(const Buffer<T>& actual, const std::vector<double>& expected, const std::vector<double>& magnitude,
                  const std::string& what) {
  const std::vector<T> host = actual.host();
  add_to_digest(host);
  const std::vector<double> values = doubles(host);
  size_t wrong = values.size() == expected.size() ? expected.size() : 0;
  for (size_t i = 0; i < expected.size() && wrong == expected.size(); ++i) {
    const double tolerance = kSpacing<T> * std::abs(expected[i]) + 1e-5 * magnitude[i] + kSmallest<T>;
    const bool same = values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]));
    if (!same && !(std::abs(values[i] - expected[i]) <= tolerance)) wrong = i;
  }
  if (wrong == expected.size()) return expect(true, what);
  expect(false, what + "[" + std::to_string(wrong) + "] = " + std::to_string(values[wrong]) + ", not " +
                    std::to_string(expected[wrong]));
}

// The magnitude is that of the largest finite entry.
template <class T>
void expect_close(const Buffer<T>& actual, const std::vector<double>& expected, const std::string& what) {
  double largest = 0;
  for (double e : expected) {
    if (std::isfinite(e)) largest = std::max(largest, std::abs(e));
  }
  expect_close(actual, expected, std::vector<double>(expected.size(), largest), what);
}

// A sum, and how large its terms are.
struct Sum {
  double value = 0, magnitude = 0;

  void add(double term, double size) {
    value += term;
    magnitude += size;
  }
  void add(double term) { add(term, std::abs(term)); }
};

inline void expect_close(const Buffer<float>& actual, const std::vector<Sum>& expected, const std::string& what) {
  std::vector<double> values, magnitudes;
  for (const Sum& sum : expected) {
    values.push_back(sum.value);
    magnitudes.push_back(sum.magnitude);
  }
  expect_close(actual, values, magnitudes, what);
}

inline void expect_zero(const Buffer<unsigned>& counter, const std::string& what) {
  const std::vector<unsigned> counts = counter.host();
  expect(std::count(counts.begin(), counts.end(), 0u) == int64_t(counts.size()), what + ": the counters are 0 afterwards");
}

inline double relu(double v) { return v < 0 ? 0 : v; }

inline std::string text(const advnas::cuda::Images& s) {
  return std::to_string(s.batch) + "x" + std::to_string(s.height) + "x" + std::to_string(s.width) + "x" +
         std::to_string(s.channels);
}

// Sizes of the stages of a NAS-Bench-201 network.
inline std::vector<advnas::cuda::Images> network_sizes() { return {{16, 32, 32, 16}, {16, 16, 16, 32}, {16, 8, 8, 64}}; }

// The distinct bytes of the launches since clear_launches(), against what a pass must at least move: `elements` of tensors, and
// `floats` of parameters; and what the shim reads off their arguments (work.h) against those bytes.
template <class T>
void expect_traffic(const char* function, const advnas::cuda::Images& shape, int64_t elements, int64_t floats,
                    double most = 1.05) {
  uint64_t read = 0, written = 0, moved = 0;
  for (const cuda_shim::Launch& launch : cuda_shim::launches()) {
    read += launch.read.unique;
    written += launch.written.unique;
    moved += launch.work.moved;
  }
  const uint64_t minimum = uint64_t(elements) * sizeof(T) + uint64_t(floats) * sizeof(float);
  const double ratio = double(read + written) / double(minimum);
  std::printf("traffic %s<%s> C=%d %dx%d read=%llu written=%llu minimum=%llu ratio=%.3f\n", function, name_of<T>(),
              shape.channels, shape.height, shape.width, static_cast<unsigned long long>(read),
              static_cast<unsigned long long>(written), static_cast<unsigned long long>(minimum), ratio);
  const std::string what = std::string(function) + ", " + name_of<T>() + ", " + text(shape);
  expect(ratio >= 0.99 && ratio <= most, "traffic of " + what);
  const double known = double(moved) / double(read + written);
  expect(known >= 0.999 && known <= 1.001, "work of " + what + ": " + std::to_string(known) + " of what the checker counts");
}

}  // namespace check
