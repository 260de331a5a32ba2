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
  for (int64_t row = begin; row < end; ++row) {
    for_units<T>(node.units, [&](int64_t i, auto part) {
      Vec<T> sum{};
      for (int64_t k = 0; k < node.num_sources; ++k) {
        const RecurrentSource<T>& source = node.source[k];
        const T* const z = pre + row * node.pre_stride + source.column + i;
        const Vec<T> state = part.load(states + source.state * node.state_stride + row * node.units + i);
        Vec<T> y{};
        if (source.picked != 0) {
          const Vec<T> u = part.load(z + node.units);
          for (int op = 0; op < kNumRecurrentOps; ++op) {
            if (is_picked(source, op)) y += source.gate[op] * recurrent_activation<VectorMath<T>>(op, u);
          }
        }
        sum += recurrent_highway(source.carry * state, VectorMath<T>::sigmoid(part.load(z)), y);
      }
      part.store(out + row * node.units + i, node.scale * sum);
    });
  }
}

template <class T>
void recurrent_backward(const RecurrentNode<T>& node, const T* states, const T* pre, const T* dout, T* dstates, T* dpre,
                        double* sums, int64_t begin, int64_t end) {
  const int64_t units = node.units;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < node.num_sources; ++k) {
      const RecurrentSource<T>& source = node.source[k];
      const int64_t z = row * node.pre_stride + source.column;
      const T* const s = states + source.state * node.state_stride + row * units;
      T* const ds = dstates + (source.state * node.batch + row) * units;
      Vec<T> dg[kNumRecurrentOps] = {}, dconstant{};
      for_units<T>(units, [&](int64_t i, auto part) {
        const Vec<T> state = part.load(s + i), carried = source.carry * state;
        const RecurrentGradient<Vec<T>> gradient{node.scale * part.load(dout + row * units + i),
                                                 VectorMath<T>::sigmoid(part.load(pre + z + i))};
        dconstant += gradient.d * gradient.c;
        Vec<T> y{}, slope{};
        if (source.picked != 0) {
          const Vec<T> u = part.load(pre + z + units + i);
          for (int op = 0; op < kNumRecurrentOps; ++op) {
            if (!is_picked(source, op)) continue;
            const Vec<T> f = recurrent_activation<VectorMath<T>>(op, u);
            y += source.gate[op] * f;
            slope += source.gate[op] * recurrent_slope(op, f);
            dg[op] += gradient.d * recurrent_output(node.whole, state, gradient.c, f);
          }
          part.store(dpre + z + units + i, gradient.du(slope));
        }
        part.store(dpre + z + i, gradient.dc(carried, y));
        part.store(ds + i, part.load(ds + i) + gradient.dstate(Vec<T>{} + source.carry));
      });
      if (sums == nullptr) continue;
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if (is_picked(source, op)) sums[source.place[op]] += sum_lanes<T>(dg[op]);
      }
      if (!node.whole) sums[source.constant] += sum_lanes<T>(dconstant);
    }
    if (sums == nullptr || !node.whole) continue;
    Vec<T> total{};
    for_units<T>(units, [&](int64_t i, auto part) { total += node.scale * part.load(dout + row * units + i); });
    for (int32_t edge = 0; edge < node.num_edges; ++edge) sums[node.constant + edge] += sum_lanes<T>(total);
  }
}

template <class T>
void recurrent_mean(const T* states, int64_t num, int64_t stride, T* out, int64_t size) {
  for_units<T>(size, [&](int64_t i, auto part) {
    Vec<T> sum{};
    for (int64_t k = 0; k < num; ++k) sum += part.load(states + k * stride + i);
    part.store(out + i, sum / T(num));
  });
}

template <class T>
void recurrent_mean_backward(const T* dh, const T* dout, int64_t num, int64_t stride, T* dstates, int64_t size) {
  for_units<T>(size, [&](int64_t i, auto part) {
    const Vec<T> share = (part.load(dh + i) + part.load(dout + i)) / T(num);
    for (int64_t k = 0; k < num; ++k) part.store(dstates + k * stride + i, share);
  });
}

template <class T>
void recurrent_mask(const T* a, const T* b, bool add, T* out, int64_t size) {
  for_units<T>(size, [&](int64_t i, auto part) {
    const Vec<T> product = part.load(a + i) * part.load(b + i);
    part.store(out + i, add ? part.load(out + i) + product : product);
  });
}

template <class T>
void fill_recurrent(Kernels<T>* table) {
  table->recurrent_forward = recurrent_forward<T>;
  table->recurrent_backward = recurrent_backward<T>;
  table->recurrent_mean = recurrent_mean<T>;
  table->recurrent_mean_backward = recurrent_mean_backward<T>;
  table->recurrent_mask = recurrent_mask<T>;
}
template void fill_recurrent(Kernels<float>*);
template void fill_recurrent(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
