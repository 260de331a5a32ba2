// Bound by memory: backward reads h, the baseline and dy once and writes dh once, with the product for dg on the way. Four sums
// hide the latency of the fused multiply-add; each run of kRun elements then goes to a double, so that the error does not grow
// with the size.
#include "../gate_math.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {

template <class T>
void gate_forward(const T* h, T gate, T* y, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) store(y + i, gate_value(load(h + i), gate));
  for (; i < size; ++i) y[i] = gate_value(h[i], gate);
}

template <bool kBaseline, class T>
double backward_of(const T* h, const T* baseline, const T* dy, T gate, T* dh, int64_t size) {
  constexpr int64_t step = 4 * kLanes<T>;
  constexpr int64_t kRun = 4096;
  const auto gain = [=](int64_t k) {
    if constexpr (kBaseline) return gate_gain(load(h + k), load(baseline + k));
    return load(h + k);
  };
  double dg = 0;
  int64_t i = 0;
  while (i + step <= size) {
    Vec<T> s0{}, s1{}, s2{}, s3{};
    const int64_t end = size - i < kRun ? size : i + kRun;
    for (; i + step <= end; i += step) {
      const Vec<T> d0 = load(dy + i), d1 = load(dy + i + kLanes<T>);
      const Vec<T> d2 = load(dy + i + 2 * kLanes<T>), d3 = load(dy + i + 3 * kLanes<T>);
      s0 = gate_advantage(gain(i), d0, s0);
      s1 = gate_advantage(gain(i + kLanes<T>), d1, s1);
      s2 = gate_advantage(gain(i + 2 * kLanes<T>), d2, s2);
      s3 = gate_advantage(gain(i + 3 * kLanes<T>), d3, s3);
      store(dh + i, gate_value(d0, gate));
      store(dh + i + kLanes<T>, gate_value(d1, gate));
      store(dh + i + 2 * kLanes<T>, gate_value(d2, gate));
      store(dh + i + 3 * kLanes<T>, gate_value(d3, gate));
    }
    dg += sum_lanes<T>((s0 + s1) + (s2 + s3));
  }
  for (; i < size; ++i) {
    dg = gate_advantage(gate_gain(double(h[i]), kBaseline ? double(baseline[i]) : 0.0), double(dy[i]), dg);
    dh[i] = gate_value(dy[i], gate);
  }
  return dg;
}

template <class T>
double gate_backward(const T* h, const T* baseline, const T* dy, T gate, T* dh, int64_t size) {
  return baseline == nullptr ? backward_of<false>(h, baseline, dy, gate, dh, size)
                             : backward_of<true>(h, baseline, dy, gate, dh, size);
}

template <class T>
void fill_gate(Kernels<T>* table) {
  table->gate_forward = gate_forward<T>;
  table->gate_backward = gate_backward<T>;
}
template void fill_gate(Kernels<float>*);
template void fill_gate(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
