// Bound by memory, so each image is read once and written once, pixel by pixel in the order of the memory; rows of pooled sources
// are made in the first-level cache first. Sums over pixels are taken in T over a row and then in double.
#include "../node.h"

#include "arrivals.h"
#include "channels.h"
#include "isa.h"
#include "vec.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

inline double total(float v) { return v; }
inline double total(double v) { return v; }
template <class V>
inline double total(V v) {
  double sum = 0;
  for (uint64_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum += v[i];
  return sum;
}
template <class T>
inline double total(const Pair<T>& v) {
  return total(v.first) + total(v.second);
}

// What a row of sources is added to: a bias for each channel, nothing, or what is in `out` already.
enum class Start { kBias, kZero, kOut };

// out [width, channels] = start + sum_k scale_k in_k for kNum sources, and product_k += sum in_k x unless x is null.
template <int kNum, bool kProducts, Start kStart, class T>
void combine(const T* const* in, const T* const* scale, const T* bias, T* out, int64_t width, int64_t channels, const T* x,
             double* product) {
  const T *source[kNum], *factor[kNum];  // on the stack: no store can change them
  for (int k = 0; k < kNum; ++k) {
    source[k] = in[k];
    factor[k] = scale[k];
  }
  const auto walk = [&](int64_t c, auto zero) {
    using V = decltype(zero);
    V times[kNum], products[kNum];
    for (int k = 0; k < kNum; ++k) {
      times[k] = load_as<V>(factor[k] + c);
      products[k] = zero;
    }
    const V begin = kStart == Start::kBias ? load_as<V>(bias + c) : zero;
    for (int64_t at = c; at < width * channels; at += channels) {
      V sum = kStart == Start::kOut ? load_as<V>(out + at) : begin;
#pragma GCC unroll 4
      for (int k = 0; k < kNum; ++k) {
        const V value = load_as<V>(source[k] + at);
        sum += value * times[k];
        if constexpr (kProducts) products[k] += value * load_as<V>(x + at);
      }
      store_as(out + at, sum);
    }
    for (int k = 0; kProducts && k < kNum; ++k) product[k] += total(products[k]);
  };
  if constexpr (kProducts && kNum > 2) {
    for_channels<T>(channels, walk);  // no registers for more
  } else {
    for_lines<T>(channels, walk);
  }
}

constexpr int kMost = 4;

// The sources of a node as they arrive, row by row.
template <class T>
class SourceRows {
 public:
  SourceRows(const Sources<T>& sources, const ImageShape& shape, T* workspace)
      : sources_(sources), shape_(shape), made_(workspace) {}

  // x: the node's value, for the gradients that read it.
  template <bool kTransposed>
  void go_to(int64_t h, const T* x) {
    h_ = h;
    for (int64_t k = 0; k < sources_.num; ++k) {
      if (is_made(k)) arrive_row<kTransposed>(sources_.arrival[k], sources_.image[k], x, h, shape_, made_row(k));
    }
  }

  // kMost sources at a time. bias may be null.
  void add_up(const T* bias, T* out, const T* x, double* product) const {
    if (sources_.num == 0) return fill(bias, out);
    Start start = bias != nullptr ? Start::kBias : Start::kZero;
    for (int64_t first = 0; first < sources_.num; first += kMost, start = Start::kOut) {
      const T* rows[kMost];
      const int64_t num = sources_.num - first < kMost ? sources_.num - first : kMost;
      for (int64_t k = 0; k < num; ++k) {
        rows[k] = is_made(first + k) ? made_row(first + k) : sources_.image[first + k] + h_ * shape_.width * shape_.channels;
      }
      const Combination call{num, rows, sources_.scale + first, bias, out, x, product + (x != nullptr ? first : 0)};
      if (start == Start::kBias) with_products<Start::kBias>(call);
      if (start == Start::kZero) with_products<Start::kZero>(call);
      if (start == Start::kOut) with_products<Start::kOut>(call);
    }
  }

 private:
  bool is_made(int64_t k) const { return sources_.arrival[k] != Arrival::kIdentity; }
  T* made_row(int64_t k) const { return made_ + k * shape_.width * shape_.channels; }

  void fill(const T* bias, T* out) const {
    if (bias == nullptr) {
      std::memset(out, 0, sizeof(T) * size_t(shape_.width * shape_.channels));
      return;
    }
    for (int64_t w = 0; w < shape_.width; ++w) {
      std::memcpy(out + w * shape_.channels, bias, sizeof(T) * size_t(shape_.channels));
    }
  }

  struct Combination {
    int64_t num;
    const T* const* rows;
    const T* const* scale;
    const T* bias;
    T* out;
    const T* x;
    double* product;
  };

  template <Start kStart>
  void with_products(const Combination& call) const {
    call.x != nullptr ? with_num<true, kStart>(call) : with_num<false, kStart>(call);
  }

  template <bool kProducts, Start kStart>
  void with_num(const Combination& call) const {
    const auto run = [&](auto combine_num) {
      combine_num(call.rows, call.scale, call.bias, call.out, shape_.width, shape_.channels, call.x, call.product);
    };
    if (call.num == 1) run(combine<1, kProducts, kStart, T>);
    if (call.num == 2) run(combine<2, kProducts, kStart, T>);
    if (call.num == 3) run(combine<3, kProducts, kStart, T>);
    if (call.num == 4) run(combine<4, kProducts, kStart, T>);
  }

  const Sources<T>& sources_;
  const ImageShape& shape_;
  T* const made_;
  int64_t h_ = 0;
};

}  // namespace

template <class T>
void node_forward(const Sources<T>& sources, const T* bias, T* y, const ImageShape& shape, T* workspace) {
  SourceRows<T> rows(sources, shape, workspace);
  for (int64_t h = 0; h < shape.height; ++h) {
    rows.template go_to<false>(h, nullptr);
    rows.add_up(bias, y + h * shape.width * shape.channels, static_cast<const T*>(nullptr), nullptr);
  }
}

template <class T>
void node_backward(const Sources<T>& sources, const T* x, T* dx, double* gate_grad, const ImageShape& shape, T* workspace) {
  SourceRows<T> rows(sources, shape, workspace);
  for (int64_t h = 0; h < shape.height; ++h) {
    const int64_t offset = h * shape.width * shape.channels;
    rows.template go_to<true>(h, x);
    rows.add_up(nullptr, dx + offset, gate_grad != nullptr ? x + offset : nullptr, gate_grad);
  }
}

template <class T>
void fill_node(Kernels<T>* table) {
  table->node_forward = node_forward<T>;
  table->node_backward = node_backward<T>;
}
template void fill_node(Kernels<float>*);
template void fill_node(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
