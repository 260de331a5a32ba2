// The CPU kernels of one instruction set against plain loops in double, without torch, so that sanitizers see every access.
// Compiled together with the kernel files for one ADVNAS_ISA.
#include <array>

#include "check.h"

namespace advnas {
namespace {

// Of the window around (h, w): the place of the first maximum, or of the last NaN.
template <class T>
std::pair<int64_t, int64_t> max_place(const std::vector<T>& x, const ImageShape& shape, int64_t h, int64_t w, int64_t c) {
  std::pair<int64_t, int64_t> place(-1, -1);
  const auto at = [&](int64_t r, int64_t s) { return double(x[(r * shape.width + s) * shape.channels + c]); };
  for (int64_t r = std::max<int64_t>(h - 1, 0); r <= std::min(h + 1, shape.height - 1); ++r) {
    for (int64_t s = std::max<int64_t>(w - 1, 0); s <= std::min(w + 1, shape.width - 1); ++s) {
      if (place.first < 0 || at(r, s) > at(place.first, place.second) || std::isnan(at(r, s))) place = {r, s};
    }
  }
  return place;
}

// A max pool alone over few different values, infinities and, if `nan`, NaNs: what is equal must go to the right pixel.
template <class T>
void check_max_pool(const cpu::Kernels<T>& kernels, const ImageShape& shape, bool nan) {
  const int64_t size = shape.height * shape.width * shape.channels;
  const ConvolutionShape at{shape.height, shape.width, shape.channels, shape.channels, 3};
  auto x = random<T>(size, 1);
  for (int64_t i = 0; i < size; ++i) x[i] = i % 11 == 3 ? T(-INFINITY) : T(std::floor(double(x[i])));
  for (int64_t i = 0; nan && i < size; i += 7) x[i] = T(NAN);
  const auto dy = random<T>(size, 2);
  const std::vector<T> one(shape.channels, T(1)), zero(shape.channels);
  std::vector<double> expected(size);
  std::vector<T> y(size), dx(size, T(NAN)), workspace(node_workspace(shape, 1), T(NAN)), wrong(size);
  const Arrival arrival = Arrival::kMaxPool;
  const T *images[] = {x.data()}, *scales[] = {one.data()};
  kernels.node_forward({1, images, scales, &arrival}, zero.data(), y.data(), shape, workspace.data());
  for (int64_t i = 0; i < size; ++i) {
    const int64_t c = i % shape.channels, w = i / shape.channels % shape.width, h = i / shape.channels / shape.width;
    const auto [r, s] = max_place(x, shape, h, w, c);
    const T value = x[(r * shape.width + s) * shape.channels + c];
    expected[(r * shape.width + s) * shape.channels + c] += dy[i];
    wrong[i] = T(!(value == y[i] || (std::isnan(value) && std::isnan(y[i]))));
  }
  images[0] = dy.data();
  kernels.node_backward({1, images, scales, &arrival}, x.data(), dx.data(), nullptr, shape, workspace.data());
  expect("max_pool forward", wrong, std::vector<double>(size), at);
  expect("max_pool backward", dx, expected, at);
}

// A node of `num` sources that arrive in all ways in turn.
template <class T>
void check_node(const cpu::Kernels<T>& kernels, const ImageShape& shape, int64_t num) {
  const int64_t size = shape.height * shape.width * shape.channels;
  const ConvolutionShape at{shape.height, shape.width, shape.channels, shape.channels, 3};
  const auto x = random<T>(size, 1), bias = random<T>(shape.channels, 2);
  std::vector<std::vector<T>> images, scales;
  std::vector<const T*> image_pointers, scale_pointers;
  std::vector<double> forward(size), backward(size), gates_expected(num), gates(num);
  Arrival arrivals[16];
  const auto index = [&](int64_t h, int64_t w, int64_t c) { return (h * shape.width + w) * shape.channels + c; };
  const auto window = [](int64_t i, int64_t side) { return std::min(i + 1, side - 1) - std::max<int64_t>(i - 1, 0) + 1; };
  for (int64_t i = 0; i < size; ++i) forward[i] = bias[i % shape.channels];
  for (int64_t k = 0; k < num; ++k) {
    images.push_back(random<T>(size, unsigned(10 + k)));
    scales.push_back(random<T>(shape.channels, unsigned(30 + k)));
    arrivals[k] = std::array{Arrival::kIdentity, Arrival::kAvgPool, Arrival::kMaxPool}[k % 3];
    for (int64_t h = 0; h < shape.height; ++h)
      for (int64_t w = 0; w < shape.width; ++w)
        for (int64_t c = 0; c < shape.channels; ++c) {
          const double scale = scales[k][c], value = images[k][index(h, w, c)];
          if (arrivals[k] == Arrival::kMaxPool) {
            const auto [r, s] = max_place(x, shape, h, w, c);
            const auto [r_in, s_in] = max_place(images[k], shape, h, w, c);
            forward[index(h, w, c)] += scale * images[k][index(r_in, s_in, c)];
            backward[index(r, s, c)] += scale * value;
            gates_expected[k] += value * x[index(r, s, c)];
            continue;
          }
          if (arrivals[k] == Arrival::kIdentity) {
            forward[index(h, w, c)] += scale * value;
            backward[index(h, w, c)] += scale * value;
            gates_expected[k] += value * x[index(h, w, c)];
            continue;
          }
          for (int64_t r = std::max<int64_t>(h - 1, 0); r <= std::min(h + 1, shape.height - 1); ++r)
            for (int64_t s = std::max<int64_t>(w - 1, 0); s <= std::min(w + 1, shape.width - 1); ++s) {
              const double count = double(window(h, shape.height) * window(w, shape.width));
              forward[index(h, w, c)] += scale * images[k][index(r, s, c)] / count;
              backward[index(r, s, c)] += scale * value / count;
              gates_expected[k] += value / count * x[index(r, s, c)];
            }
        }
  }
  for (int64_t k = 0; k < num; ++k) {
    image_pointers.push_back(images[k].data());
    scale_pointers.push_back(scales[k].data());
  }
  const Sources<T> sources{num, image_pointers.data(), scale_pointers.data(), arrivals};
  std::vector<T> y(size, T(NAN)), workspace(node_workspace(shape, num), T(NAN));
  kernels.node_forward(sources, bias.data(), y.data(), shape, workspace.data());
  expect("node_forward", y, forward, at);
  kernels.node_backward(sources, x.data(), y.data(), gates.data(), shape, workspace.data());
  expect("node_backward", y, backward, at);
  expect("gate gradients", std::vector<T>(gates.begin(), gates.end()), gates_expected, at);
  const bool reads = std::any_of(arrivals, arrivals + num, gradient_reads_input);
  kernels.node_backward(sources, reads ? x.data() : nullptr, y.data(), nullptr, shape, workspace.data());
  expect("node_backward without gates", y, backward, at);
}

// A node of a recurrent cell: every other state is a source; picks: operations of each, one after the other in turn; whole:
// whether a gate multiplies the whole edge. The rows go in two ranges, as two threads would take them.
template <class T>
void check_recurrent(const cpu::Kernels<T>& kernels, int64_t batch, int64_t units, int num_sources, int picks, bool whole,
                     double scale) {
  const int64_t size = batch * units, num_states = 2 * num_sources + 1, stride = (2 * num_sources + 1) * units;
  const ConvolutionShape at{batch, units, num_sources, picks, whole};
  const int num_places = num_sources * kNumRecurrentOps, num_edges = num_sources + 1;
  RecurrentNode<T> node{batch, units, size, stride, whole ? T(1) : T(0.5), whole, num_sources, num_places, num_edges, {}};
  const auto states = random<T>(num_states * size, 1), dout = random<T>(size, 2);
  auto pre = random<T>(batch * stride, 3), dstates = random<T>(states.size(), 4), dpre = random<T>(batch * stride, 5);
  for (T& value : pre) value *= T(scale);
  std::vector<double> out_expected(size), dstates_expected(dstates.begin(), dstates.end()),
      dpre_expected(dpre.begin(), dpre.end());
  std::vector<double> sums_expected(num_places + num_edges);
  for (int k = 0; k < num_sources; ++k) {
    RecurrentSource<T>& source = node.source[k];
    source.state = 2 * k + 1;
    source.column = (2 * k + 1) * units;  // the first columns belong to another node
    source.carry = whole ? T(0) : T(1);
    source.constant = num_places + k;
    for (int pick = 0; pick < picks; ++pick) {
      const int op = (k + pick) % kNumRecurrentOps;
      source.picked |= 1u << op;
      source.gate[op] = T(0.5 + 0.25 * pick);
      source.place[op] = k * kNumRecurrentOps + op;
      if (whole) source.carry += source.gate[op];
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t z = i / units * stride + source.column + i % units, s = source.state * size + i;
      const double state = states[s], u = picks == 0 ? 0 : double(pre[z + units]), c = 1 / (1 + std::exp(-double(pre[z])));
      const double f[] = {u, std::tanh(u), 1 / (1 + std::exp(-u)), u > 0 ? u : 0}, d = node.scale * double(dout[i]);
      const double slope[] = {1, 1 - f[1] * f[1], f[2] * (1 - f[2]), u > 0 ? 1. : 0.};
      double y = 0, du = 0;
      for (int op = 0; op < kNumRecurrentOps; ++op) {
        if ((source.picked >> op & 1) == 0) continue;
        y += source.gate[op] * f[op];
        du += source.gate[op] * slope[op];
        sums_expected[source.place[op]] += d * (whole ? state + c * (f[op] - state) : c * f[op]);
      }
      const double carried = source.carry * state;
      out_expected[i] += node.scale * (carried + c * (y - carried));
      dpre_expected[z] = d * (y - carried) * c * (1 - c);
      if (picks > 0) dpre_expected[z + units] = d * c * du;
      dstates_expected[s] += d * source.carry * (1 - c);
      if (!whole) sums_expected[source.constant] += d * c;
    }
  }
  for (const T value : dout) {
    for (int edge = 0; whole && edge < num_edges; ++edge) sums_expected[num_places + edge] += node.scale * value;
  }
  std::vector<T> out(size, T(NAN));
  std::vector<double> sums(sums_expected.size());
  const auto backward = [&](double* to) {
    kernels.recurrent_backward(node, states.data(), pre.data(), dout.data(), dstates.data(), dpre.data(), to, 0, batch / 2);
    kernels.recurrent_backward(node, states.data(), pre.data(), dout.data(), dstates.data(), dpre.data(), to, batch / 2, batch);
  };
  kernels.recurrent_forward(node, states.data(), pre.data(), out.data(), 0, batch / 2);
  kernels.recurrent_forward(node, states.data(), pre.data(), out.data(), batch / 2, batch);
  backward(sums.data());
  expect("recurrent_forward", out, out_expected, at);
  expect("recurrent_backward, states", dstates, dstates_expected, at);
  expect("recurrent_backward, pre-activations", dpre, dpre_expected, at);
  expect("recurrent_backward, sums", std::vector<T>(sums.begin(), sums.end()), sums_expected, at);
  const auto before = dpre;
  backward(nullptr);
  expect("recurrent_backward without sums", dpre, std::vector<double>(before.begin(), before.end()), at);
}

// Products with a packed matrix, of several pairs of arrays whose rows lie apart.
template <class T>
void check_matrix(const cpu::Kernels<T>& kernels, int64_t rows, int64_t depth, int64_t columns, bool transposed, bool add) {
  const ConvolutionShape at{rows, depth, columns, transposed, add};
  const int64_t num = 2, a_stride = depth + 3, c_stride = columns + 5;
  const auto b = random<T>(depth * columns, 1), a = random<T>(num * rows * a_stride, 2);
  auto c = random<T>(num * rows * c_stride, 3);
  const int64_t row_stride = transposed ? 1 : columns, column_stride = transposed ? depth : 1;
  std::vector<double> expected(c.begin(), c.end());
  for (int64_t n = 0; n < num; ++n) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        double sum = add ? double(c[(n * rows + i) * c_stride + j]) : 0;
        for (int64_t d = 0; d < depth; ++d) {
          sum += double(a[(n * rows + i) * a_stride + d]) * b[d * row_stride + j * column_stride];
        }
        expected[(n * rows + i) * c_stride + j] = sum;
      }
    }
  }
  std::vector<T> packed(packed_size(depth, columns));
  kernels.pack_matrix(b.data(), row_stride, column_stride, depth, columns, packed.data());
  const std::vector<const T*> from{a.data(), a.data() + rows * a_stride};
  const std::vector<T*> to{c.data(), c.data() + rows * c_stride};
  kernels.multiply_packed({rows, depth, columns, num, from.data(), a_stride, to.data(), c_stride, add}, packed.data());
  expect("multiply_packed", c, expected, at);
}

template <class T>
void check_cells() {
  const auto kernels = all_kernels<T>();
  for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {2, 2}, {7, 3}, {8, 8}}) {
    for (int64_t channels : {1, 4, 8, 17, 32}) {
      for (int64_t num : {0, 1, 2, 3, 4, 9}) check_node(kernels, {height, width, channels}, num);
      for (bool nan : {false, true}) check_max_pool(kernels, {height, width, channels}, nan);
    }
  }
  for (int64_t batch : {1, 2, 5}) {
    for (int64_t units : {1, 4, 7, 8, 16, 19, 67}) {
      for (int num_sources : {0, 1, 4}) {
        for (int picks : {0, 1, 2, 4}) {
          check_recurrent(kernels, batch, units, num_sources, picks, false, 1);
          if (picks > 0) check_recurrent(kernels, batch, units, num_sources, picks, true, 1);
        }
      }
    }
  }
  for (double scale : {1e-3, 1e2, 1e4}) {
    for (bool whole : {false, true}) check_recurrent(kernels, 3, 67, kMaxRecurrentSources, 1, whole, scale);
  }
  for (int64_t rows : {1, 3, 7, 16}) {
    for (int64_t depth : {1, 5, 40}) {
      for (int64_t columns : {1, 7, 32, 75}) {
        for (bool transposed : {false, true}) {
          for (bool add : {false, true}) check_matrix(kernels, rows, depth, columns, transposed, add);
        }
      }
    }
  }
}

}  // namespace
}  // namespace advnas

int main() {
  advnas::check_all_convolutions();
  advnas::check_all_norms();
  advnas::check_cells<float>();
  advnas::check_cells<double>();
  std::printf("%d passed, %d failed\n", advnas::passed, advnas::failed);
  return advnas::failed != 0;
}
