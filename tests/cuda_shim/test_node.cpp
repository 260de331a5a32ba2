// node.cu against the formulas of node.h in double.
#include "../../csrc/kernels/node.h"
#include "../../csrc/kernels/pool_math.h"
#include "check.h"

namespace {

using namespace check;
using namespace advnas::cuda;
using advnas::Arrival;
using Doubles = std::vector<double>;

// avg_pool_3x3, or its transpose.
Doubles pool(const Doubles& from, const Images& s, bool transposed) {
  Doubles to(from.size());
  const auto at = [&](int image, int h, int w) { return ((size_t(image) * s.height + h) * s.width + w) * s.channels; };
  for (int image = 0; image < s.batch; ++image) {
    for (int h = 0; h < s.height; ++h) {
      for (int w = 0; w < s.width; ++w) {
        const double share = 1.0 / (advnas::pool_window(h, s.height) * advnas::pool_window(w, s.width));
        for (int y = std::max(h - 1, 0); y <= std::min(h + 1, s.height - 1); ++y) {
          for (int x = std::max(w - 1, 0); x <= std::min(w + 1, s.width - 1); ++x) {
            const size_t here = at(image, h, w), there = at(image, y, x);
            for (int c = 0; c < s.channels; ++c) {
              transposed ? to[there + c] += share * from[here + c] : to[here + c] += share * from[there + c];
            }
          }
        }
      }
    }
  }
  return to;
}

// max_pool_3x3 of `x`, or its transpose, which takes `dy` to the first maximum of each window or to its last NaN.
Doubles max_pool(const Doubles& x, const Images& s, const Doubles* dy) {
  Doubles to(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const int w = int(i / s.channels % s.width), h = int(i / s.channels / s.width % s.height);
    size_t best = x.size();
    for (int y = std::max(h - 1, 0); y <= std::min(h + 1, s.height - 1); ++y) {
      for (int v = std::max(w - 1, 0); v <= std::min(w + 1, s.width - 1); ++v) {
        const size_t at = i + ((int64_t(y) - h) * s.width + v - w) * s.channels;
        if (best == x.size() || x[at] > x[best] || std::isnan(x[at])) best = at;
      }
    }
    dy != nullptr ? to[best] += (*dy)[i] : to[i] = x[best];
  }
  return to;
}

// The transpose of the mean of 2x2 pixels.
template <class T>
Doubles spread(const std::vector<T>& from, const Images& s) {
  Doubles to;
  for (int image = 0; image < s.batch; ++image) {
    for (int h = 0; h < s.height; ++h) {
      for (int w = 0; w < s.width; ++w) {
        const int rows = std::min(2, s.height - h / 2 * 2), columns = std::min(2, s.width - w / 2 * 2);
        const size_t pixel = (size_t(image) * ((s.height + 1) / 2) + h / 2) * ((s.width + 1) / 2) + w / 2;
        for (int c = 0; c < s.channels; ++c) to.push_back(double(float(from[pixel * s.channels + c])) / (rows * columns));
      }
    }
  }
  return to;
}

struct SourceCase {
  Arrival arrival;
  bool special;  // forward: scale and shift in place of the gate; backward: the gate's gradient is wanted
};

float gate_of(size_t k) { return 0.5f + 0.25f * float(k); }

// The k-th case of a cycle through all kinds of sources.
constexpr Arrival kArrivals[] = {Arrival::kIdentity, Arrival::kAvgPool, Arrival::kMaxPool, Arrival::kMasked, Arrival::kHalved};
SourceCase forward_source(size_t k) { return {kArrivals[k % 3], k % 6 >= 3}; }
SourceCase backward_source(size_t k) { return {kArrivals[k % 5], k % 5 < 3 && k % 10 < 5}; }
std::vector<SourceCase> cycle(SourceCase (*one)(size_t), size_t first, size_t num) {
  std::vector<SourceCase> cases;
  for (size_t k = 0; k < num; ++k) cases.push_back(one(first + k));
  return cases;
}

// Few different values, so that many are equal, and those that a comparison can get wrong.
template <class T>
void make_special(std::vector<T>& values) {
  for (T& value : values) value = T(std::floor(float(value)));
  values[0] = T(std::numeric_limits<float>::quiet_NaN());
  values[1] = T(std::numeric_limits<float>::infinity());
  values[2] = T(-std::numeric_limits<float>::infinity());
}

template <class T>
void forward(const Images& s, const std::vector<SourceCase>& cases, bool has_start, bool has_y, bool has_relu,
             bool special_values, const std::string& what) {
  std::vector<T> start = noise<T>(s.size(), 1);
  if (special_values) make_special(start);
  const Buffer<T> start_device(start, "start");
  Buffer<T> y(size_t(s.size()), "y"), relu(size_t(s.size()), "relu");
  Buffers<T> data;
  Buffers<float> maps;
  Doubles expected = has_start ? doubles(start) : Doubles(size_t(s.size()));
  NodeForward<T> node{s,
                      has_start ? start_device.data() : nullptr,
                      has_y ? y.data() : nullptr,
                      has_relu ? relu.data() : nullptr,
                      int(cases.size()),
                      {}};
  for (size_t k = 0; k < cases.size(); ++k) {
    std::vector<T> source = noise<T>(s.size(), 10 + k);
    if (special_values) make_special(source);
    data.emplace_back(source, "source");
    maps.emplace_back(noise<float>(2 * s.channels, 30 + k), "scale_shift");
    Doubles value = doubles(data[k]);
    if (cases[k].arrival == Arrival::kAvgPool) value = pool(value, s, false);
    if (cases[k].arrival == Arrival::kMaxPool) value = max_pool(value, s, nullptr);
    const Doubles map = doubles(maps[k]);
    for (size_t i = 0; i < value.size(); ++i) {
      const size_t c = i % s.channels;
      expected[i] += cases[k].special ? map[c] * value[i] + map[s.channels + c] : gate_of(k) * value[i];
    }
    node.source[k] = {data[k].data(), cases[k].arrival, gate_of(k), cases[k].special ? maps[k].data() : nullptr, nullptr};
  }
  cuda_shim::clear_launches();
  node_forward<T>(node, nullptr);
  if (has_y) expect_close(y, expected, what + ": y");
  for (double& e : expected) e = check::relu(e);
  if (has_relu) expect_close(relu, expected, what + ": relu");
}

// What a backward pass is asked for.
struct Backward {
  std::vector<SourceCase> sources;
  int num_sums;
  bool start, x, dx, total;
  unsigned nulls;  // bits: which of gamma and beta, dgamma, dbeta, dbias, gate_grad, rows of the sums are null
  bool special_values = false, in_place = false;
};

constexpr float kGateBefore = 2.5f;  // what is added to

// Of one convolution.
template <class T>
struct SumBuffers {
  Buffer<T> z;
  Buffer<float> gamma, beta, rows, gradient, dgamma, dbeta, dbias, gate_grad;

  SumBuffers(const Images& s, int j)
      : z(noise<T>(s.size(), 50 + j, 0.5), "z"),
        gamma(noise<float>(s.channels, 60 + j, 1.5), "gamma"),
        beta(noise<float>(s.channels, 70 + j), "beta"),
        rows(noise<float>(int64_t(kNormRows) * s.channels, 80 + j, 1.5), "rows"),
        gradient(size_t(kGradientRows) * s.channels, "gradient"),
        dgamma(s.channels, "dgamma"),
        dbeta(s.channels, "dbeta"),
        dbias(s.channels, "dbias"),
        gate_grad(std::vector{kGateBefore}, "gate_grad of a sum") {}
};

template <class T>
void expect_sum(const SumBuffers<T>& b, const NormBackward<T>& norm, const Images& s, const Doubles& dx,
                const Doubles& dx_magnitude, const std::string& what) {
  const int channels = s.channels;
  Doubles rows = doubles(b.rows);
  if (norm.rows == nullptr) {
    std::fill_n(rows.begin() + kMean * channels, channels, 0);
    std::fill_n(rows.begin() + kRstd * channels, channels, 1);
  }
  const Doubles z = doubles(b.z), gamma_row = doubles(b.gamma), beta_row = doubles(b.beta);
  std::vector<Sum> s1(channels), s2(channels), gradient(size_t(kGradientRows) * channels), dgamma, dbeta, dbias,
      gate{{kGateBefore, kGateBefore}};
  for (size_t i = 0; i < dx.size(); ++i) {
    const size_t c = i % channels;
    const double distance = z[i] - rows[kMean * channels + c];
    s1[c].add(dx[i], dx_magnitude[i]);
    s2[c].add(dx[i] * distance, dx_magnitude[i] * std::abs(distance));
  }
  const auto times = [](double factor, const Sum& sum) { return Sum{factor * sum.value, std::abs(factor) * sum.magnitude}; };
  for (int c = 0; c < channels; ++c) {
    const double gamma = norm.gamma ? gamma_row[c] : 1, beta = norm.beta ? beta_row[c] : 0, rstd = rows[kRstd * channels + c];
    const double mean = rows[kMean * channels + c], scale = norm.gate * gamma * rstd, count = double(s.pixels());
    const Sum slope = times(norm.of_batch ? -scale * rstd * rstd / count : 0, s2[c]), moved = times(-mean, slope);
    const Sum constant = times(norm.of_batch ? -scale / count : 0, s1[c]);
    gradient[kOfDy * channels + c] = {scale, std::abs(scale)};
    gradient[kOfZ * channels + c] = slope;
    gradient[kConstant * channels + c] = {constant.value + moved.value, constant.magnitude + moved.magnitude};
    dgamma.push_back(times(norm.gate * rstd, s2[c]));
    dbeta.push_back(times(norm.gate, s1[c]));
    dbias.push_back(times(scale, s1[c]));
    gate[0].value += gamma * rstd * s2[c].value + beta * s1[c].value;
    gate[0].magnitude += std::abs(gamma * rstd) * s2[c].magnitude + std::abs(beta) * s1[c].magnitude;
  }
  expect_close(b.gradient, gradient, what + ": gradient");
  if (norm.dgamma) expect_close(b.dgamma, dgamma, what + ": dgamma");
  if (norm.dbeta) expect_close(b.dbeta, dbeta, what + ": dbeta");
  if (norm.dbias) expect_close(b.dbias, dbias, what + ": dbias");
  if (norm.gate_grad) expect_close(b.gate_grad, gate, what + ": gate_grad of a sum");
}

template <class T>
void backward(const Images& s, const Backward& asked, const std::string& what) {
  const auto size = size_t(s.size());
  std::vector<T> x = noise_with_zeros<T>(s.size(), 2);
  if (asked.special_values) make_special(x);
  const Buffer<T> start(noise<T>(s.size(), 1), "start"), x_device(x, "x");
  Buffer<T> dx(size, "dx");
  Buffer<float> total(1, "total"), partial(node_backward_workspace(s), "partial");
  Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  Buffers<T> data;
  Buffers<float> gates;
  std::deque<SumBuffers<T>> sums;
  NodeBackward<T> node{};
  node.shape = s;
  node.start = asked.start ? start.data() : nullptr;
  node.dx = asked.dx ? dx.data() : nullptr;
  node.x = asked.x ? x_device.data() : nullptr;
  node.total = asked.total ? total.data() : nullptr;
  node.num = int(asked.sources.size());
  node.num_sums = asked.num_sums;
  if (asked.in_place) {  // as a second launch does that adds more sources
    dx.fill(start.host());
    node.start = dx.data();
  }
  bool wants_sums = asked.total || asked.num_sums > 0;
  Doubles expected = asked.start ? doubles(start) : Doubles(size);
  Doubles magnitude(size);
  for (size_t i = 0; i < size; ++i) magnitude[i] = std::abs(expected[i]);
  const Doubles at = doubles(x_device);
  std::vector<Sum> products(node.num, {kGateBefore, kGateBefore});
  for (size_t k = 0; k < asked.sources.size(); ++k) {
    const auto [arrival, wanted] = asked.sources[k];
    const bool halved = arrival == Arrival::kHalved;
    const Images half{s.batch, (s.height + 1) / 2, (s.width + 1) / 2, s.channels};
    data.emplace_back(noise<T>((halved ? half : s).size(), 10 + k), "source");
    gates.emplace_back(std::vector{kGateBefore}, "gate_grad");
    Doubles value = halved ? spread(data[k].host(), s) : doubles(data[k]);
    if (arrival == Arrival::kAvgPool) value = pool(value, s, true);
    if (arrival == Arrival::kMaxPool) value = max_pool(at, s, &value);
    for (size_t i = 0; i < size; ++i) {
      products[k].add(value[i] * at[i]);
      const double term = arrival == Arrival::kMasked ? (at[i] <= 0 ? 0 : value[i]) : gate_of(k) * value[i];
      expected[i] += term;
      magnitude[i] += std::abs(term);
    }
    node.source[k] = {data[k].data(), arrival, gate_of(k), nullptr, wanted ? gates[k].data() : nullptr};
    wants_sums |= wanted;
  }
  for (int j = 0; j < asked.num_sums; ++j) {
    SumBuffers<T>& b = sums.emplace_back(s, j);
    const auto given = [&](int bit, Buffer<float>& buffer) { return asked.nulls >> bit & 1 ? nullptr : buffer.data(); };
    node.sum[j] = {b.z.data(),        given(0, b.gamma),          given(0, b.beta),     given(5, b.rows),
                   0.75f + float(j),  (asked.nulls + j) % 2 == 0, b.gradient.data(),    given(1, b.dgamma),
                   given(2, b.dbeta), given(3, b.dbias),          given(4, b.gate_grad)};
  }
  if (wants_sums) {
    node.partial = partial.data();
    node.counter = counter.data();
  }
  cuda_shim::clear_launches();
  node_backward<T>(node, nullptr);

  if (asked.dx) expect_close(dx, expected, what + ": dx");
  for (size_t k = 0; k < asked.sources.size(); ++k) {
    if (asked.sources[k].special) expect_close(gates[k], {products[k]}, what + ": gate_grad of source " + std::to_string(k));
  }
  for (int j = 0; j < asked.num_sums; ++j)
    expect_sum(sums[j], node.sum[j], s, expected, magnitude, what + ", sum " + std::to_string(j));
  if (asked.total) {
    Sum all;
    for (size_t i = 0; i < size; ++i) all.add(expected[i], magnitude[i]);
    expect_close(total, {all}, what + ": total");
  }
  expect_zero(counter, what);
}

// 301 channels, and as float 1028: two slabs; 65 x 4 and 260 columns of them: more than blocks.
template <class T>
std::vector<Images> sizes() {
  std::vector<Images> all = {{1, 1, 1, 1},  {3, 1, 7, 3},  {2, 5, 3, 8},  {1, 9, 4, 17},
                             {3, 8, 8, 16}, {1, 5, 3, 33}, {2, 9, 4, 64}, {65, 1, 4, 301}};
  if (kQuick) return all;
  all.insert(all.end(), {{5, 7, 1, 1}, {3, 8, 8, 33}, {1, 1, 1, 64}});
  if (std::is_same_v<T, float>) all.insert(all.end(), {{1, 3, 2, 1028}, {260, 1, 1, 1024}});
  return all;
}

}  // namespace

int main() {
  for_types([]<class T>() {
    size_t n = 0;
    for (const Images& s : sizes<T>()) {
      ++n;
      const std::string type = std::string(name_of<T>()) + " " + text(s);
      under_orders("forward " + type, [&](const std::string& what) {
        forward<T>(s, cycle(forward_source, n, 4), n % 2, n % 3 != 1, n % 3 != 2, false, what);
      });
      under_orders("backward " + type, [&](const std::string& what) {
        const Backward asked{cycle(backward_source, n, 3), 1 + int(n % 3), n % 2 == 0, true, true, n % 4 < 2, unsigned(n * 5)};
        backward<T>(s, asked, what);
      });
    }
    // Every number of sources and of sums, and what may be null.
    const Images small{2, 5, 3, kQuick ? 8 : 24};
    for (size_t num = 0; num <= size_t(kMaxSources); num += kQuick ? 4 : 1) {
      const std::string what = std::string(name_of<T>()) + ", " + std::to_string(num) + " sources";
      forward<T>(small, cycle(forward_source, num, num), num % 3 == 1, true, true, false, what);
      for (int sums = 0; sums <= kMaxSums; ++sums) {
        const unsigned nulls = unsigned(5 * num + 11 * sums);
        backward<T>(small, {cycle(backward_source, num, num), sums, nulls % 3 == 1, true, true, nulls % 4 < 2, nulls}, what);
      }
    }
    const std::string type = name_of<T>();
    for (int sums = 0; sums <= kMaxSums; ++sums)
      backward<T>(small, {{}, sums, true, false, false, true, 0}, "sums of start, " + type);
    backward<T>(small, {{}, 2, true, false, false, false, 8}, "sums of start without the total, " + type);
    backward<T>(small, {{{Arrival::kIdentity, false}, {Arrival::kAvgPool, false}}, 0, true, false, true, false, 0},
                "no sums, " + type);
    backward<T>(small, {cycle(backward_source, 3, 1), 0, false, true, true, false, 0, true}, "masks of NaN and inf, " + type);
    backward<T>(small, {{{Arrival::kMaxPool, false}}, 0, false, true, true, false, 0, true},
                "maxima of NaN, inf and equals, " + type);
    backward<T>(small, {cycle(backward_source, 0, 2), 0, false, true, false, false, 0}, "gates of the first node alone, " + type);
    backward<T>(small, {cycle(backward_source, 0, 4), 1, true, true, true, true, 0, false, true}, "in place, " + type);
    forward<T>(small, {}, true, true, true, true, "NaN and inf, " + type);
    forward<T>(small, {{Arrival::kMaxPool, false}}, false, true, true, true, "maxima of NaN and inf, " + type);
    cuda_shim::clear_launches();
    NodeForward<T> no_images{};
    no_images.shape = {0, 4, 4, 8};
    node_forward<T>(no_images, nullptr);
    NodeBackward<T> nothing_back{};
    nothing_back.shape = no_images.shape;
    node_backward<T>(nothing_back, nullptr);
    expect(cuda_shim::launches().empty(), "no images, " + type);
    if (kQuick) return;

    // A skip connection, a pooled edge and a convolution; and back, two convolutions and both gates.
    for (const Images& s : network_sizes()) {
      forward<T>(s, {{Arrival::kIdentity, false}, {Arrival::kAvgPool, false}, {Arrival::kIdentity, true}}, false, true, true,
                 false, "network, " + type);
      expect_traffic<T>("node_forward", s, 5 * s.size(), 2 * s.channels);
      backward<T>(s,
                  {{{Arrival::kIdentity, true}, {Arrival::kAvgPool, true}, {Arrival::kMasked, false}},
                   2,
                   false,
                   true,
                   true,
                   false,
                   1 + 2 + 4 + 8},
                  "network, " + type);
      expect_traffic<T>("node_backward", s, 7 * s.size(), 2 * (kGradientRows + 2) * s.channels);
    }
  });
  return finish();
}
