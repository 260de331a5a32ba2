// What the tests of the CPU kernels share: a table of kernels, random data and the comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"

namespace advnas::cpu::ADVNAS_ISA {
template <class T>
void fill_node(Kernels<T>*);
template <class T>
void fill_convolution(Kernels<T>*);
template <class T>
void fill_depthwise(Kernels<T>*);
template <class T>
void fill_head(Kernels<T>*);
template <class T>
void fill_norm(Kernels<T>*);
template <class T>
void fill_matrix(Kernels<T>*);
template <class T>
void fill_recurrent(Kernels<T>*);
template <class T>
void fill_winograd(Kernels<T>*);
}  // namespace advnas::cpu::ADVNAS_ISA

namespace advnas {

template <class T>
cpu::Kernels<T> all_kernels() {
  cpu::Kernels<T> kernels{};
  cpu::ADVNAS_ISA::fill_node(&kernels);
  cpu::ADVNAS_ISA::fill_convolution(&kernels);
  cpu::ADVNAS_ISA::fill_depthwise(&kernels);
  cpu::ADVNAS_ISA::fill_head(&kernels);
  cpu::ADVNAS_ISA::fill_norm(&kernels);
  cpu::ADVNAS_ISA::fill_matrix(&kernels);
  cpu::ADVNAS_ISA::fill_recurrent(&kernels);
  cpu::ADVNAS_ISA::fill_winograd(&kernels);
  return kernels;
}

// Of one file each, for both types.
void check_all_convolutions();
void check_all_norms();

inline int passed = 0, failed = 0;

inline void count(bool ok) { ok ? ++passed : ++failed; }

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
  count(ok);
}

template <class T, class U>
std::vector<T> as(const std::vector<U>& values) {
  return {values.begin(), values.end()};
}

}  // namespace advnas
