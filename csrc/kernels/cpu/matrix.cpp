// Bound by arithmetic: a block of rows times one panel stays in registers (product.h), a panel in the caches near the core.
#include "../matrix.h"

#include "isa.h"
#include "product.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

template <class T>
inline constexpr int64_t kPanel = 2 * kLanes<T>;
static_assert(kPanel<float> <= 32, "packed_size fills up to 32 columns");

// Rows at a time: their part of a, and of c, is read again for every panel.
constexpr int64_t kRows = 12;
constexpr int64_t kDepth = 512;

}  // namespace

template <class T>
void pack_matrix(const T* b, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, T* packed) {
  for (int64_t first = 0; first < columns; first += kPanel<T>) {
    const int64_t width = columns - first < kPanel<T> ? columns - first : kPanel<T>;
    for (int64_t i = 0; i < depth; ++i, packed += kPanel<T>) {
      for (int64_t j = 0; j < kPanel<T>; ++j) packed[j] = j < width ? b[i * row_stride + (first + j) * column_stride] : T(0);
    }
  }
}

template <class T>
void multiply_packed(const MatrixProducts<T>& p, const T* packed) {
  for (int64_t first = 0; first < p.columns; first += kPanel<T>, packed += p.depth * kPanel<T>) {
    const int64_t width = p.columns - first < kPanel<T> ? p.columns - first : kPanel<T>;
    for (int64_t depth = 0; depth < p.depth; depth += kDepth) {
      const int64_t steps = p.depth - depth < kDepth ? p.depth - depth : kDepth;
      const bool add = p.add || depth > 0;
      for (int64_t k = 0; k < p.num; ++k) {
        const T* const a = p.a[k] + depth;
        T* const c = p.c[k] + first;
        Walk walk{1, p.rows, 1, 1, steps, kPanel<T>, 0, p.a_stride, 0, p.c_stride, add};
        if (width == kPanel<T>) {
          convolve_channels<Vec<T>, 2>(a, packed + depth * kPanel<T>, c, walk, 0);
          continue;
        }
        // The last panel reaches beyond the columns, into what belongs to others.
        T whole[kRows * kPanel<T>];
        walk.out_pixel = kPanel<T>;
        walk.add = false;
        for (int64_t row = 0; row < p.rows; row += kRows) {
          walk.columns = p.rows - row < kRows ? p.rows - row : kRows;
          convolve_channels<Vec<T>, 2>(a + row * p.a_stride, packed + depth * kPanel<T>, whole, walk, 0);
          for (int64_t i = 0; i < walk.columns; ++i) {
            T* const to = c + (row + i) * p.c_stride;
            for (int64_t j = 0; j < width; ++j) to[j] = add ? to[j] + whole[i * kPanel<T> + j] : whole[i * kPanel<T> + j];
          }
        }
      }
    }
  }
}

template <class T>
void fill_matrix(Kernels<T>* table) {
  table->pack_matrix = pack_matrix<T>;
  table->multiply_packed = multiply_packed<T>;
}
template void fill_matrix(Kernels<float>*);
template void fill_matrix(Kernels<double>*);

}  // namespace advnas::cpu::ADVNAS_ISA
