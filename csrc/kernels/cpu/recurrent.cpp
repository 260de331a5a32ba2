// Bound by the exponentials, two or so for each source. Each pre-activation is read once. What a row leaves over after whole
// vectors goes through a vector too, filled up with zeros: an element's value does not depend on its place. The sums of a row are
// taken in T over its vectors and then in double, so that the error does not grow with the batch.
#include "../recurrent_math.h"
#include "exponential.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

template <class T>
struct Whole {
  Vec<T> load(const T* p) const { return ADVNAS_ISA::load(p); }
  void store(T* p, Vec<T> v) const { ADVNAS_ISA::store<T>(p, v); }
};

template <class T>
struct Rest {
  int64_t size;  // below kLanes
  Vec<T> load(const T* p) const {
    Vec<T> v{};
    std::memcpy(&v, p, size_t(size) * sizeof(T));
    return v;
  }
  void store(T* p, Vec<T> v) const { std::memcpy(p, &v, size_t(size) * sizeof(T)); }
};

template <class T, class Body>
inline void for_units(int64_t units, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= units; i += kLanes<T>) body(i, Whole<T>{});
  if (i < units) body(i, Rest<T>{units - i});
}

template <class G>
inline bool is_picked(const RecurrentSource<G>& source, int op) {
  return (source.picked >> op & 1) != 0;
}

}  // namespace

template <class T>
void recurrent_forward(const RecurrentNode<T>& node, const T* states, const T* pre, T* out, int64_t begin, int64_t end) {
  const int64_t units = node.units;
  for (int64_t row = begin; row < end; ++row) {
    for_units<T>(units, [&](int64_t i, auto part) {
      Vec<T> sum{};
      for (int64_t k = 0; k < node.num_sources; ++k) {
        const RecurrentSource<T>& source = node.source[k];
        const T* const z = pre + (k * node.batch + row) * 2 * units + i;
        const Vec<T> state = part.load(states + (source.state * node.batch + row) * units + i);
        const Vec<T> c = VectorMath<T>::sigmoid(part.load(z)), u = part.load(z + units);
        for (int op = 0; op < kNumRecurrentOps; ++op) {
          if (!is_picked(source, op)) continue;
          sum += source.gate[op] * recurrent_output(state, c, recurrent_activation<VectorMath<T>>(op, u));
        }
      }
      part.store(out + row * units + i, sum);
    });
  }
}

template <class T>
void recurrent_backward(const RecurrentNode<T>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                        double* sums, int64_t begin, int64_t end) {
  const int64_t units = node.units;
  for (int64_t row = begin; row < end; ++row) {
    const T* const d = dout + row * units;
    for (int64_t k = 0; k < node.num_sources; ++k) {
      const RecurrentSource<T>& source = node.source[k];
      const int64_t z = (k * node.batch + row) * 2 * units, s = (source.state * node.batch + row) * units;
      Vec<T> dg[kNumRecurrentOps] = {};
      for_units<T>(units, [&](int64_t i, auto part) {
        const Vec<T> ds = part.load(d + i), state = part.load(states + s + i);
        const Vec<T> c = VectorMath<T>::sigmoid(part.load(pre + z + i)), u = part.load(pre + z + units + i);
        RecurrentGradient<Vec<T>> gradient{Vec<T>{}, Vec<T>{}, Vec<T>{}};
        for (int op = 0; op < kNumRecurrentOps; ++op) {
          if (!is_picked(source, op)) continue;
          const Vec<T> f = recurrent_activation<VectorMath<T>>(op, u);
          gradient.add(source.gate[op] * ds, state, f, recurrent_slope(op, f));
          dg[op] += ds * recurrent_output(state, c, f);
        }
        part.store(dpre + z + i, gradient.dc(c));
        part.store(dpre + z + units + i, gradient.du(c));
        part.store(dstates + s + i, part.load(dstates + s + i) + gradient.dstate(c));
      });
      if (sums == nullptr) continue;
      for (int op = 0; op < kNumRecurrentOps; ++op) sums[k * kNumRecurrentOps + op] += sum_lanes<T>(dg[op]);
    }
    if (sums == nullptr) continue;
    Vec<T> total{};
    for_units<T>(units, [&](int64_t i, auto part) { total += part.load(d + i); });
    sums[node.num_sources * kNumRecurrentOps] += sum_lanes<T>(total);
  }
}

template <class T>
void fill_recurrent(Kernels<T>* table) {
  table->recurrent_forward = recurrent_forward<T>;
  table->recurrent_backward = recurrent_backward<T>;
}
template void fill_recurrent(Kernels<float>*);
template void fill_recurrent(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
