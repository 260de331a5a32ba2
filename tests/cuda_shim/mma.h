// nvcuda::wmma for 16 x 16 x 16, half and bfloat16 products summed in float. Every function is a barrier of the whole warp.
#pragma once

#include "ptx.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "the shim has 16 x 16 x 16 only");
  static constexpr int num_elements = 8;
  T x[num_elements];
};

template <class Use, class T, class Layout>
using Fragment = fragment<Use, 16, 16, 16, T, Layout>;
using Accumulator = fragment<accumulator, 16, 16, 16, float>;

// Which of the 256 elements (row-major) a lane holds as x[i]. CUDA leaves it open, so it is none that a kernel would write by
// hand: a lane that fills its own elements and reads them without __syncwarp meets those of others.
CUDA_SHIM_DEVICE unsigned element(unsigned lane, unsigned i) { return i * 32 + (lane * 5 + i * 3) % 32; }

template <class T>
CUDA_SHIM_DEVICE void check(const T* p, unsigned ld, cuda_shim::Place place) {
  cuda_shim::wait_warp(cuda_shim::kFullMask, false, nullptr, nullptr, place);
  if (reinterpret_cast<uintptr_t>(p) % 32 != 0) cuda_shim::fail("misaligned wmma", "the address needs 32 bytes", place);
  if (ld * sizeof(T) % 16 != 0) cuda_shim::fail("misaligned wmma", "the leading dimension needs a multiple of 16 bytes", place);
}

CUDA_SHIM_DEVICE size_t offset(unsigned lane, unsigned i, unsigned ld, bool by_rows) {
  const unsigned e = element(lane, i), row = e / 16, column = e % 16;
  return by_rows ? size_t(row) * ld + column : size_t(column) * ld + row;
}

template <class Use, class T, class Layout>
CUDA_SHIM_DEVICE void fill_fragment(Fragment<Use, T, Layout>& f, std::type_identity_t<T> value) {
  for (T& x : f.x) x = value;
}

template <class Use, class T, class Layout>
CUDA_SHIM_DEVICE void load_matrix_sync(Fragment<Use, T, Layout>& f, const T* p, unsigned ld, CUDA_SHIM_HERE) {
  check(p, ld, place);
  const unsigned lane = cuda_shim::lane();
  for (unsigned i = 0; i < 8; ++i) f.x[i] = p[offset(lane, i, ld, std::is_same_v<Layout, row_major>)];
}

CUDA_SHIM_DEVICE void load_matrix_sync(Accumulator& f, const float* p, unsigned ld, layout_t layout, CUDA_SHIM_HERE) {
  check(p, ld, place);
  const unsigned lane = cuda_shim::lane();
  for (unsigned i = 0; i < 8; ++i) f.x[i] = p[offset(lane, i, ld, layout == mem_row_major)];
}

CUDA_SHIM_DEVICE void store_matrix_sync(float* p, const Accumulator& f, unsigned ld, layout_t layout, CUDA_SHIM_HERE) {
  check(p, ld, place);
  const unsigned lane = cuda_shim::lane();
  for (unsigned i = 0; i < 8; ++i) p[offset(lane, i, ld, layout == mem_row_major)] = f.x[i];
}

template <class T>
struct Product {
  const T *a, *b;
  const float* c;
  float* d;
};

// The products are exact in float; the sum runs over k in order.
template <class T>
inline void multiply(void* const* arguments) {
  float a[256], b[256], d[256];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const Product<T>& p = *static_cast<const Product<T>*>(arguments[lane]);
    for (unsigned i = 0; i < 8; ++i) {
      a[element(lane, i)] = float(p.a[i]);
      b[element(lane, i)] = float(p.b[i]);
      d[element(lane, i)] = p.c[i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 16; ++column) d[row * 16 + column] += a[row * 16 + k] * b[k * 16 + column];
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 8; ++i) static_cast<const Product<T>*>(arguments[lane])->d[i] = d[element(lane, i)];
  }
}

template <class T, class LayoutA, class LayoutB>
CUDA_SHIM_DEVICE void mma_sync(Accumulator& d, const Fragment<matrix_a, T, LayoutA>& a, const Fragment<matrix_b, T, LayoutB>& b,
                               const Accumulator& c, CUDA_SHIM_HERE) {
  Product<T> product{a.x, b.x, c.x, d.x};
  cuda_shim::wait_warp(cuda_shim::kFullMask, false, multiply<T>, &product, place);
}

}  // namespace nvcuda::wmma
