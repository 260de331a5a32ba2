// Matrix products whose right side is used many times, so that it is laid out once for the registers.
//
//   c [rows, columns] = a [rows, depth] b [depth, columns]
//
// Packed, b is panels of a few vectors of columns, one after the other, each [depth, kPanel]; the last one is filled up with
// zeros.
#pragma once

#include <cstdint>

namespace advnas {

// Elements that `packed` needs, whatever the instruction set.
inline int64_t packed_size(int64_t depth, int64_t columns) { return depth * ((columns + 31) / 32 * 32); }

// b: element (i, j) at i * row_stride + j * column_stride. packed: [packed_size], written. Parts of
// b from a column on that 32 divides may be packed by themselves, to depth times that column.
template <class T>
using PackMatrix = void(const T* b, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, T* packed);

// Several products with one b, of `rows` each. a, c: `num` of them, row strides in elements. c is added to with `add`.
template <class T>
struct MatrixProducts {
  int64_t rows, depth, columns, num;
  const T* const* a;
  int64_t a_stride;
  T* const* c;
  int64_t c_stride;
  bool add;
};
template <class T>
using MultiplyPacked = void(const MatrixProducts<T>& products, const T* packed);

}  // namespace advnas
