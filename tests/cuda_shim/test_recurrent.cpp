// The CUDA kernels of recurrent.cu against plain loops in double, over sizes around every boundary and several orders of the
// threads.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "../../csrc/kernels/recurrent_node.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

using namespace advnas;
using cuda_shim::Buffer;

int passed = 0, failed = 0;

template <class T>
std::vector<T> wave(int64_t size, double step, double scale) {
  std::vector<T> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = T(float(scale * std::sin(step * double(i + 1))));
  return values;
}

// terms: how large what cancels may have been, where the rest of it is smaller.
template <class A, class B>
bool close(const A& actual, const B& expected, double tolerance, double terms) {
  double largest = terms, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double at = double(actual[i]) - expected[i];
    error = std::max(error, std::isfinite(at) ? std::abs(at) : INFINITY);
  }
  return actual.size() == expected.size() && error <= tolerance * largest;
}

// whole: whether a gate multiplies the whole edge. offset: elements by which every array is away from 16 bytes.
template <class T>
void check(int64_t batch, int64_t units, int num_sources, int picks, bool whole, int64_t offset, double tolerance) {
  const int64_t size = batch * units, num_states = 2 * num_sources + 1, stride = (2 * num_sources + 1) * units;
  const int num_places = num_sources * kNumRecurrentOps, num_edges = num_sources + 1;
  RecurrentNode<float> node{batch, units, size, stride, whole ? 1.f : 0.5f, whole, num_sources, num_places, num_edges, {}};
  const double scale = node.scale;
  const auto states = wave<T>(offset + num_states * size, 0.7, 1), dout = wave<T>(offset + size, 0.3, 1);
  const auto pre = wave<T>(offset + batch * stride, 0.13, 2), dstates_before = wave<T>(states.size(), 0.9, 1);
  const auto dpre_before = wave<T>(offset + batch * stride, 0.17, 1);
  std::vector<double> out_expected(size), dpre_expected, dstates_expected, sums_expected(num_places + num_edges, 1);
  for (size_t i = offset; i < dstates_before.size(); ++i) dstates_expected.push_back(double(dstates_before[i]));
  for (size_t i = offset; i < dpre_before.size(); ++i) dpre_expected.push_back(double(dpre_before[i]));
  for (int k = 0; k < num_sources; ++k) {
    RecurrentSource<float>& source = node.source[k];
    source.state = 2 * k + 1;
    source.column = (2 * k + 1) * units;  // the first columns belong to another node
    source.carry = whole ? 0 : 1;
    source.constant = num_places + k;
    for (int pick = 0; pick < picks; ++pick) {
      const int op = (k + pick) % kNumRecurrentOps;
      source.picked |= 1u << op;
      source.gate[op] = 0.5f + 0.25f * float(pick);
      source.place[op] = k * kNumRecurrentOps + op;
      if (whole) source.carry += source.gate[op];
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t z = i / units * stride + source.column + i % units, s = source.state * size + i;
      const double state = states[offset + s], u = picks == 0 ? 0 : double(pre[offset + z + units]),
                   c = 1 / (1 + std::exp(-double(pre[offset + z]))), d = scale * double(dout[offset + i]);
      const double f[] = {u, std::tanh(u), 1 / (1 + std::exp(-u)), u > 0 ? u : 0};
      const double slope[] = {1, 1 - f[1] * f[1], f[2] * (1 - f[2]), u > 0 ? 1. : 0.};
      double y = 0, du = 0;
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if ((source.picked >> op & 1) == 0) continue;
        y += double(source.gate[op]) * f[op];
        du += double(source.gate[op]) * slope[op];
        sums_expected[source.place[op]] += d * (whole ? state + c * (f[op] - state) : c * f[op]);
      }
      const double carried = double(source.carry) * state;
      out_expected[i] += scale * (carried + c * (y - carried));
      dpre_expected[z] = d * (y - carried) * c * (1 - c);
      if (picks > 0) dpre_expected[z + units] = d * c * du;
      dstates_expected[s] += d * double(source.carry) * (1 - c);
      if (!whole) sums_expected[source.constant] += d * c;
    }
  }
  for (size_t i = offset; whole && i < dout.size(); ++i) {
    for (int edge = 0; edge < num_edges; ++edge) sums_expected[num_places + edge] += scale * double(dout[i]);
  }
  for (unsigned seed : {1u, 2u}) {
    for (bool wanted : {true, false}) {
      if (!wanted && seed > 1) continue;
      cuda_shim::seed = seed;
      const Buffer<T> states_in(states, "states"), pre_in(pre, "pre"), dout_in(dout, "dout");
      Buffer<T> out_buffer(offset + size, "out"), dpre_buffer(dpre_before, "dpre"), to(dstates_before, "dstates");
      Buffer<double> sums_buffer(std::vector<double>(sums_expected.size(), 1), "sums");  // added to
      Buffer<float> workspace(cuda::recurrent_workspace(node), "workspace");
      cuda::recurrent_forward(node, states_in.data() + offset, pre_in.data() + offset, out_buffer.data() + offset, nullptr);
      cuda::recurrent_backward(node, states_in.data() + offset, pre_in.data() + offset, dout_in.data() + offset,
                               to.data() + offset, dpre_buffer.data() + offset, wanted ? sums_buffer.data() : nullptr,
                               wanted ? workspace.data() : nullptr, nullptr);
      const auto cut = [&](std::vector<T> v) {
        v.erase(v.begin(), v.begin() + offset);
        return v;
      };
      const std::vector<T> out = cut(out_buffer.host()), dpre = cut(dpre_buffer.host()), dstates = cut(to.host());
      const std::vector<double> sums = sums_buffer.host();
      const double of_sums = 0.01 * std::sqrt(double(size));
      const bool ok = close(out, out_expected, tolerance, 0.1) && close(dpre, dpre_expected, tolerance, 0.1) &&
                      close(dstates, dstates_expected, tolerance, 0.1) && (!wanted || close(sums, sums_expected, 1e-5, of_sums));
      if (!ok)
        std::printf("[%lld, %lld], %d sources, %d picks, whole %d, offset %lld, %zu bytes, seed %u, sums %d\n", (long long)batch,
                    (long long)units, num_sources, picks, whole, (long long)offset, sizeof(T), seed, wanted);
      ok ? ++passed : ++failed;
    }
  }
}

template <class T>
void check_both(int64_t batch, int64_t units, int num_sources, int picks, int64_t offset, double tolerance) {
  check<T>(batch, units, num_sources, picks, false, offset, tolerance);
  if (picks > 0) check<T>(batch, units, num_sources, picks, true, offset, tolerance);
}

int main() {
  for (auto [batch, units] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {2, 16}, {7, 129}, {9, 264}}) {
    for (int num_sources : {0, 1, 3}) {
      for (int picks : {0, 1, 4}) {
        for (int64_t offset : {0, 1}) {
          check_both<float>(batch, units, num_sources, picks, offset, 2e-6);
          check_both<__half>(batch, units, num_sources, picks, offset, 1e-3);
#ifndef CUDA_SHIM_QUICK  // test_mutations.py builds two types
          check_both<__nv_bfloat16>(batch, units, num_sources, picks, offset, 8e-3);
#endif
        }
      }
    }
  }
  check_both<float>(270, 1000, 1, 1, 0, 2e-6);  // more than the blocks take at once
  check_both<float>(3, 12, kMaxRecurrentSources, 1, 0, 2e-6);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
