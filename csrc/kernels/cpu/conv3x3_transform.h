// The transforms of F(4x4, 3x3) at the points 0, 1, -1, 2, -2 and infinity:
//
//         4  0 -5  0  1  0            1    0    0            1  1  1  1  1  0
//         0 -4 -4  1  1  0         -1/6 -1/6 -1/6      A^T = 0  1 -1  2 -2  0
//   B^T = 0  4 -4 -1  1  0     G = -1/6  1/6 -1/6            0  1  1  4  4  0
//         0 -2 -1  2  1  0         1/24 1/12  1/6            0  1 -1  8 -8  1
//         0  2 -1 -2  1  0         1/24-1/12  1/6
//         0  4  0 -5  0  1            0    0    1                                (the first row of G is 1/4, 0, 0)
//
// Rows k and k + 1 of the pairs (1, 2) and (3, 4) are a sum and a difference of the same two terms. The two-dimensional
// transforms go by such pairs of rows: 12 or 8 values of a pair fit the registers and are at once transformed along the other
// side, so that nothing goes through memory but the operands (read twice) and the results. The vectors hold channels.
#pragma once

#include "conv_lanes.h"

namespace advnas::cpu::ADVNAS_ISA {

inline constexpr int kPlaces = 36;  // of a transformed tile, 6x6

template <class V>
struct Pair {
  V first, second;
};

// B^T d along one side; put(j, v) for j < 6.
template <class V, class Put>
inline ADVNAS_INLINE void input_line(V d0, V d1, V d2, V d3, V d4, V d5, const Put& put) {
  const V even = d4 - 4 * d2, odd = d3 - 4 * d1;
  const V even2 = d4 - d2, odd2 = d3 - d1;
  put(0, even2 + 4 * (d0 - d2));
  put(1, even + odd);
  put(2, even - odd);
  put(3, even2 + 2 * odd2);
  put(4, even2 - 2 * odd2);
  put(5, (d5 - d3) - 4 * odd2);
}

// B^T d B: get(i, j) gives the patch, put(place, v) takes the result.
template <class Get, class Put>
inline ADVNAS_INLINE void transform_input(const Get& get, const Put& put) {
  using V = decltype(get(0, 0));
  const auto line = [&](int i, V d0, V d1, V d2, V d3, V d4, V d5) ADVNAS_INLINE {
    input_line(d0, d1, d2, d3, d4, d5, [&](int j, V v) ADVNAS_INLINE { put(6 * i + j, v); });
  };
  {
    const auto row = [&](int j) ADVNAS_INLINE {
      const V d2 = get(2, j);
      return (get(4, j) - d2) + 4 * (get(0, j) - d2);
    };
    line(0, row(0), row(1), row(2), row(3), row(4), row(5));
  }
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V even = get(4, j) - 4 * get(2, j), odd = get(3, j) - 4 * get(1, j);
      return Pair<V>{even + odd, even - odd};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3), c4 = rows(4), c5 = rows(5);
    line(1, c0.first, c1.first, c2.first, c3.first, c4.first, c5.first);
    line(2, c0.second, c1.second, c2.second, c3.second, c4.second, c5.second);
  }
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V even = get(4, j) - get(2, j), odd = get(3, j) - get(1, j);
      return Pair<V>{even + 2 * odd, even - 2 * odd};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3), c4 = rows(4), c5 = rows(5);
    line(3, c0.first, c1.first, c2.first, c3.first, c4.first, c5.first);
    line(4, c0.second, c1.second, c2.second, c3.second, c4.second, c5.second);
  }
  {
    const auto row = [&](int j) ADVNAS_INLINE {
      const V d3 = get(3, j);
      return (get(5, j) - d3) - 4 * (d3 - get(1, j));
    };
    line(5, row(0), row(1), row(2), row(3), row(4), row(5));
  }
}

// A^T m A: get(place) gives the sums, put(i, j, v) takes the 4x4 outputs.
template <class Get, class Put>
inline ADVNAS_INLINE void transform_output(const Get& get, const Put& put) {
  using V = decltype(get(0));
  const auto line = [&](int i, V m0, V m1, V m2, V m3, V m4, V m5) ADVNAS_INLINE {
    const V sum = m1 + m2, difference = m1 - m2, sum2 = m3 + m4, difference2 = m3 - m4;
    put(i, 0, (m0 + sum) + sum2);
    put(i, 1, difference + 2 * difference2);
    put(i, 2, sum + 4 * sum2);
    put(i, 3, (m5 + difference) + 8 * difference2);
  };
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V sum = get(6 + j) + get(12 + j), sum2 = get(18 + j) + get(24 + j);
      return Pair<V>{(get(j) + sum) + sum2, sum + 4 * sum2};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3), c4 = rows(4), c5 = rows(5);
    line(0, c0.first, c1.first, c2.first, c3.first, c4.first, c5.first);
    line(2, c0.second, c1.second, c2.second, c3.second, c4.second, c5.second);
  }
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V difference = get(6 + j) - get(12 + j), difference2 = get(18 + j) - get(24 + j);
      return Pair<V>{difference + 2 * difference2, (get(30 + j) + difference) + 8 * difference2};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3), c4 = rows(4), c5 = rows(5);
    line(1, c0.first, c1.first, c2.first, c3.first, c4.first, c5.first);
    line(3, c0.second, c1.second, c2.second, c3.second, c4.second, c5.second);
  }
}

// A d A^T: get(i, j) gives a 4x4 tile of the output's gradient, put(place, v) takes the result.
template <class Get, class Put>
inline ADVNAS_INLINE void transform_output_gradient(const Get& get, const Put& put) {
  using V = decltype(get(0, 0));
  const auto line = [&](int i, V d0, V d1, V d2, V d3) ADVNAS_INLINE {
    const V even = d0 + d2, odd = d1 + d3, even2 = d0 + 4 * d2, odd2 = d1 + 4 * d3;
    put(6 * i, d0);
    put(6 * i + 1, even + odd);
    put(6 * i + 2, even - odd);
    put(6 * i + 3, even2 + 2 * odd2);
    put(6 * i + 4, even2 - 2 * odd2);
    put(6 * i + 5, d3);
  };
  line(0, get(0, 0), get(0, 1), get(0, 2), get(0, 3));
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V even = get(0, j) + get(2, j), odd = get(1, j) + get(3, j);
      return Pair<V>{even + odd, even - odd};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3);
    line(1, c0.first, c1.first, c2.first, c3.first);
    line(2, c0.second, c1.second, c2.second, c3.second);
  }
  {
    const auto rows = [&](int j) ADVNAS_INLINE {
      const V even = get(0, j) + 4 * get(2, j), odd = get(1, j) + 4 * get(3, j);
      return Pair<V>{even + 2 * odd, even - 2 * odd};
    };
    const auto c0 = rows(0), c1 = rows(1), c2 = rows(2), c3 = rows(3);
    line(3, c0.first, c1.first, c2.first, c3.first);
    line(4, c0.second, c1.second, c2.second, c3.second);
  }
  line(5, get(3, 0), get(3, 1), get(3, 2), get(3, 3));
}

// G g along one side: put(i, v) for i < 6.
template <class V, class T, class Put>
inline ADVNAS_INLINE void weight_line(V g0, V g1, V g2, T, const Put& put) {
  constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twenty_fourth = T(1) / 24;
  const V outer = (g0 + g2) * -sixth, middle = g1 * -sixth;
  const V outer2 = g0 * twenty_fourth + g2 * sixth, middle2 = g1 * twelfth;
  put(0, g0 * T(0.25));
  put(1, outer + middle);
  put(2, outer - middle);
  put(3, outer2 + middle2);
  put(4, outer2 - middle2);
  put(5, g2);
}

// G^T u along one side: put(i, v) for i < 3.
template <class V, class T, class Put>
inline ADVNAS_INLINE void weight_gradient_line(V u0, V u1, V u2, V u3, V u4, V u5, T, const Put& put) {
  constexpr T sixth = T(1) / 6, twelfth = T(1) / 12, twenty_fourth = T(1) / 24;
  const V sum = (u1 + u2) * -sixth, sum2 = u3 + u4;
  put(0, u0 * T(0.25) + (sum + sum2 * twenty_fourth));
  put(1, (u2 - u1) * sixth + (u3 - u4) * twelfth);
  put(2, (sum + sum2 * sixth) + u5);
}

}  // namespace advnas::cpu::ADVNAS_ISA
