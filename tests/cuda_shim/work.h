// What a launch of a kernel of csrc/kernels/cuda moves and computes, read off its arguments. Kernels are told apart by the
// members of their arguments, so that no header of theirs is needed here. The programs hold `moved` against what the checker
// counts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <set>

namespace cuda_shim {

// Bytes of global memory and floating-point operations, two for a multiply-add.
struct Work {
  uint64_t least = 0;  // what the arguments make necessary, each read and written once
  uint64_t moved = 0;  // every distinct byte that is read, and that is written: partial sums of the blocks too
  uint64_t flops = 0;
};

inline constexpr uint64_t kFloat = sizeof(float);

inline uint64_t present(std::initializer_list<const void*> pointers) {
  return pointers.size() - uint64_t(std::count(pointers.begin(), pointers.end(), nullptr));
}

// Rows of [channels] floats of batch statistics: parameters, running ones read and written, and the four that are kept. Only the
// running mean needs the convolution's bias.
template <class Norm>
uint64_t norm_forward_bytes(const Norm& norm, uint64_t channels) {
  const uint64_t running = 2 * present({norm.running_mean, norm.running_var}) + (norm.running_mean && norm.bias);
  return (present({norm.gamma, norm.beta}) + running + 4) * channels * kFloat + 16 * present({norm.batches_tracked});
}

// Of every block the count, the means and the squares, written and read.
inline uint64_t statistics_bytes(uint64_t blocks, uint64_t channels) { return 2 * blocks * (1 + 2 * channels) * kFloat; }

template <class Node>
Work node_forward_work(const Node& a) {
  const uint64_t image = uint64_t(a.shape.size()) * sizeof(*a.y);
  std::set<const void*> images, maps;
  for (int k = 0; k < a.num; ++k) {
    images.insert(a.source[k].data);
    maps.insert(a.source[k].scale_shift);
  }
  const uint64_t bytes = image * (images.size() + present({a.start, a.y, a.relu})) +
                         2 * uint64_t(a.shape.channels) * kFloat * (maps.size() - maps.count(nullptr));
  return {bytes, bytes, 0};
}

template <class Node>
Work node_backward_work(const Node& a, uint64_t blocks, uint64_t slabs) {
  const auto& s = a.shape;
  const uint64_t channels = uint64_t(s.channels), element = sizeof(*a.dx), image = uint64_t(s.size()) * element;
  const uint64_t half = uint64_t(s.batch) * uint64_t((s.height + 1) / 2) * uint64_t((s.width + 1) / 2) * channels * element;
  std::set<const void*> images, halved;
  uint64_t gates = 0;
  bool reads_x = false;
  for (int k = 0; k < a.num; ++k) {
    using Arrival = decltype(a.source[k].arrival);
    const bool gated = a.source[k].gate_grad != nullptr;
    (a.source[k].arrival == Arrival::kHalved ? halved : images).insert(a.source[k].data);
    reads_x |= gated || a.source[k].arrival == Arrival::kMasked || a.source[k].arrival == Arrival::kMaxPool;
    gates += gated;
  }
  uint64_t rows = 0;
  for (int j = 0; j < a.num_sums; ++j) {
    const auto& norm = a.sum[j];
    rows += (norm.rows ? 2 : 0) + 3 + present({norm.gamma, norm.beta, norm.dgamma, norm.dbeta, norm.dbias});
    gates += norm.gate_grad != nullptr;
    images.insert(norm.z);
  }
  const uint64_t sums = a.num_sums > 0 || a.total ? 1 + uint64_t(a.num_sums) : 0;
  const uint64_t written = uint64_t(a.num) * slabs + sums * channels, read = gates * slabs + sums * channels;
  const uint64_t least =
      image * (images.size() + present({a.start, a.dx})) + half * halved.size() + rows * channels * kFloat + 2 * gates * kFloat;
  return {least + reads_x * image, least + (a.x ? image : 0) + (a.counter ? blocks * (written + read) * kFloat : 0), 0};
}

// Of x, which is twice as high and wide where its mean is taken.
template <class Convolution>
uint64_t pixels_of_x(const Convolution& a) {
  const uint64_t height = uint64_t(a.prologue.height), width = uint64_t(a.prologue.width), pixels = uint64_t(a.shape.pixels);
  return height > 0 ? pixels / ((height + 1) / 2 * ((width + 1) / 2)) * height * width : pixels;
}

template <class Convolution>
Work pointwise_forward_work(const Convolution& a, uint64_t blocks) {
  const uint64_t pixels = uint64_t(a.shape.pixels), in = uint64_t(a.shape.in), out = uint64_t(a.shape.out);
  const uint64_t least =
      sizeof(*a.x) * (pixels_of_x(a) * in + pixels * out + in * out) + (a.of_batch ? norm_forward_bytes(a.norm, out) : 0);
  return {least, least + (a.of_batch ? statistics_bytes(blocks, out) : 0), 2 * pixels * in * out};
}

template <class Convolution>
Work pointwise_backward_work(const Convolution& a, uint64_t ranges) {
  const uint64_t pixels = uint64_t(a.shape.pixels), in = uint64_t(a.shape.in), out = uint64_t(a.shape.out), weight = in * out;
  const bool to_weight = a.dweight != nullptr;
  const uint64_t elements = 2 * pixels * out + (a.dp ? pixels * in + weight : 0) + (to_weight ? pixels_of_x(a) * in + weight : 0);
  const uint64_t least = sizeof(*a.x) * elements + 3 * out * kFloat;
  const uint64_t partial = to_weight && ranges > 1 ? 2 * ranges * weight * kFloat : 0;
  return {least, least + partial, 2 * pixels * weight * present({a.dp, a.dweight})};
}

// The part of the weight's gradient that blocks leave is added up by a launch of its own.
template <class Convolution>
Work conv3x3_work(const Convolution& a, uint64_t blocks) {
  const uint64_t pixels = uint64_t(a.shape.pixels()), in = uint64_t(a.shape.in), out = uint64_t(a.shape.out);
  const uint64_t element = sizeof(*a.z), weight = 9 * in * out, flops = 2 * pixels * weight;
  if constexpr (requires { a.of_batch; }) {
    const uint64_t least = element * (pixels * (in + out) + weight) + (a.of_batch ? norm_forward_bytes(a.norm, out) : 0);
    return {least, least + (a.of_batch ? statistics_bytes(blocks, out) : 0), flops};
  } else {
    const uint64_t taken = element * pixels * (in + 2 * out) + 3 * out * kFloat;
    if constexpr (requires { a.dp; }) return {taken + element * weight, taken + element * weight, flops};
    return {taken + (blocks > 1 ? 0 : element * weight), taken + weight * (blocks > 1 ? blocks * kFloat : element), flops};
  }
}

// Of any other kernel nothing is known.
template <class... Arguments>
Work work_of(uint64_t, uint64_t, uint64_t, const Arguments&...) {
  return {};
}

// Of a kernel with all arguments in one struct; `rest`: how it lies in shared memory, or which thread has which column.
template <class A, class Rest>
Work work_of(uint64_t x, uint64_t y, uint64_t, const A& a, const Rest&) {
  if constexpr (requires { a.shape.pitch(); }) {
    return conv3x3_work(a, x);
  } else if constexpr (requires { a.relu; }) {
    return node_forward_work(a);
  } else if constexpr (requires { a.num_sums; }) {
    return node_backward_work(a, x, y);
  } else if constexpr (requires { a.of_batch; }) {
    return pointwise_forward_work(a, x);
  } else if constexpr (requires { a.dweight; }) {
    return pointwise_backward_work(a, x);
  } else {
    return {};
  }
}

// norm: statistics.
template <class T, class Shape, class Lanes, class Norm>
Work work_of(uint64_t x, uint64_t, uint64_t, const T* const&, const Shape& shape, const Lanes&, const Norm& norm, float* const&,
             unsigned* const&) {
  const uint64_t channels = uint64_t(shape.channels);
  const uint64_t least = uint64_t(shape.size()) * sizeof(T) + norm_forward_bytes(norm, channels);
  return {least, least + statistics_bytes(x, channels), 0};
}

// norm: gradient.
template <class T>
Work work_of(uint64_t, uint64_t, uint64_t, const T* const&, const T* const&, const float* const&, T* const&, const int64_t& packs,
             const int& channels) {
  const int pack = channels % int(16 / sizeof(T)) == 0 ? int(16 / sizeof(T)) : 1;
  const uint64_t bytes = 3 * uint64_t(packs * pack) * sizeof(T) + 3 * uint64_t(channels) * kFloat;
  return {bytes, bytes, 0};
}

// conv3x3: sum.
template <class T>
Work work_of(uint64_t, uint64_t, uint64_t, const float* const&, T* const&, const int& size, const int& ranges) {
  const uint64_t least = uint64_t(size) * sizeof(T);
  return {least, least + uint64_t(size) * uint64_t(ranges) * kFloat, 0};
}

// layout: to_channels_last.
template <class T>
Work work_of(uint64_t, uint64_t, uint64_t images, const T* const&, T* const& y, T* const& relu, const int& channels,
             const int& pixels) {
  const uint64_t bytes = images * uint64_t(channels) * uint64_t(pixels) * sizeof(T) * (1 + present({y, relu}));
  return {bytes, bytes, 0};
}

}  // namespace cuda_shim
