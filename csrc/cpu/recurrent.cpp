// The recurrent cell on the host. The rows of a batch do not meet before the weights' gradients, so each thread takes its own
// through the whole sequence, and no thread waits for another. Weights are laid out for the products once, since every step uses
// them again.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cstring>

#include "../kernels/cpu/isa.h"
#include "../recurrent_pass.h"
#include "parallel.h"

namespace advnas::cpu {
namespace {

using at::Tensor;

// Rows whose sums are one partial sum, so that the result does not depend on the number of threads.
constexpr int64_t kRowsInChunk = 4;
// Elements of a state that make a thread worth its while.
constexpr int64_t kLeastElements = 1 << 12;
// Columns that a thread packs at a time: whole panels in every instruction set.
constexpr int64_t kColumnsToPack = 32;

template <class T>
class Packed {
 public:
  // b: [depth, columns], any strides.
  explicit Packed(const Tensor& b) : depth_(b.size(0)), columns_(b.size(1)) {
    data_ = at::empty({packed_size(depth_, columns_)}, b.options());
    T* const to = data_.mutable_data_ptr<T>();
    const T* const from = b.const_data_ptr<T>();
    const int64_t row_stride = b.stride(0), column_stride = b.stride(1);
    parallel_for((columns_ + kColumnsToPack - 1) / kColumnsToPack, 1 + kLeastElements / depth_, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kColumnsToPack;
      kernels<T>().pack_matrix(from + first * column_stride, row_stride, column_stride, depth_,
                               std::min(columns_, end * kColumnsToPack) - first, to + first * depth_);
    });
  }

  // c[k] = a[k] b, or += with `add`.
  void multiply(const std::vector<const T*>& a, int64_t a_stride, const std::vector<T*>& c, int64_t c_stride, int64_t rows,
                bool add) const {
    kernels<T>().multiply_packed({rows, depth_, columns_, int64_t(a.size()), a.data(), a_stride, c.data(), c_stride, add},
                                 data_.const_data_ptr<T>());
  }

 private:
  int64_t depth_, columns_;
  Tensor data_;
};

// Edges into one node with one weight: a product for each panel of it.
template <class T>
struct Group {
  Packed<T> weight;
  std::vector<RecurrentEdge> edges;
};

// Of each node its groups. backward: the weights are transposed.
template <class T>
std::vector<std::vector<Group<T>>> groups_of(const RecurrentPass& pass, bool backward) {
  std::vector<std::vector<Group<T>>> groups(pass.plan.nodes.size());
  for (const RecurrentEdge& edge : pass.plan.edges) {
    auto& of_node = groups[edge.target];
    const auto same = std::find_if(of_node.begin(), of_node.end(), [&](const Group<T>& group) {
      return group.edges[0].weight == edge.weight && group.edges[0].width == edge.width;
    });
    if (same != of_node.end()) {
      same->edges.push_back(edge);
    } else {
      const Tensor weight = pass.weights[edge.weight].narrow(1, 0, edge.width);
      of_node.push_back({Packed<T>(backward ? weight.t() : weight), {edge}});
    }
  }
  return groups;
}

// Where a step lies in memory.
template <class T>
struct Memory {
  explicit Memory(const RecurrentPass& pass)
      : size(pass.batch() * pass.units()),
        units(pass.units()),
        width(pass.plan.width),
        num_nodes(pass.num_nodes()),
        kept(pass.states.size(1)),
        h(pass.h.const_data_ptr<T>()),
        mask(pass.h_mask.defined() ? pass.h_mask.const_data_ptr<T>() : nullptr),
        out(pass.out.mutable_data_ptr<T>()),
        states_(pass.states.mutable_data_ptr<T>()),
        pre_(pass.pre.mutable_data_ptr<T>()),
        pre_input_(pass.plan.reads_input() ? pass.pre_input.mutable_data_ptr<T>() : nullptr) {}

  const T* before(int64_t step) const { return step == 0 ? h : out + (step - 1) * size; }
  T* state(int64_t node, int64_t step) const { return states_ + (node * kept + (kept == 1 ? 0 : step)) * size; }
  T* pre(int64_t step) const { return pre_ + (kept == 1 ? 0 : step) * (size / units * width); }
  T* pre_input(int64_t step) const { return pre_input_ + step * 2 * size; }

  int64_t size, units, width, num_nodes, kept;
  const T *h, *mask;
  T* out;

 private:
  T *states_, *pre_, *pre_input_;
};

// Calls body(begin, end) with the rows of each thread, whole chunks.
template <class Body>
void for_rows(const RecurrentPass& pass, const Body& body) {
  const int64_t batch = pass.batch(), chunks = (batch + kRowsInChunk - 1) / kRowsInChunk;
  parallel_for(chunks, 1 + kLeastElements / (kRowsInChunk * pass.units()),
               [&](int64_t begin, int64_t end) { body(begin * kRowsInChunk, std::min(batch, end * kRowsInChunk)); });
}

template <class T>
void forward(const RecurrentPass& pass) {
  const Memory<T> memory(pass);
  const auto nodes = nodes_of<T>(pass.plan);
  const auto groups = groups_of<T>(pass, false);
  const Packed<T> from_h(pass.from_h());
  const Kernels<T>& run = kernels<T>();
  const int64_t units = memory.units, width = memory.width;
  for_rows(pass, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin, first = begin * units, size = rows * units;
    std::vector<T> masked(memory.mask == nullptr ? 0 : size);
    std::vector<const T*> a;
    std::vector<T*> c;
    for (int64_t step = 0; step < pass.length(); ++step) {
      if (pass.plan.reads_input()) {
        const T* const before = memory.before(step);
        if (memory.mask != nullptr) run.recurrent_mask(before + first, memory.mask + first, false, masked.data(), size);
        from_h.multiply({memory.mask == nullptr ? before + first : masked.data()}, units, {memory.pre_input(step) + 2 * first},
                        2 * units, rows, true);
        run.recurrent_forward(nodes[0], before, memory.pre_input(step), memory.state(0, step), begin, end);
      }
      for (int64_t t = 1; t <= memory.num_nodes; ++t) {
        for (const Group<T>& group : groups[t]) {
          a.clear(), c.clear();
          for (const RecurrentEdge& edge : group.edges) {
            a.push_back(memory.state(edge.source, step) + first);
            c.push_back(memory.pre(step) + begin * width + edge.column);
          }
          group.weight.multiply(a, units, c, width, rows, false);
        }
        run.recurrent_forward(nodes[t], memory.state(0, step), memory.pre(step), memory.state(t, step), begin, end);
      }
      run.recurrent_mean(memory.state(1, step) + first, memory.num_nodes, memory.kept * memory.size,
                         memory.out + step * memory.size + first, size);
    }
  });
}

template <class T>
void backward(const RecurrentPass& pass, const RecurrentGradients& gradients) {
  const Memory<T> memory(pass);
  const auto nodes = nodes_of<T>(pass.plan);
  const auto groups = groups_of<T>(pass, true);
  const Packed<T> to_h(pass.from_h().t());
  const Kernels<T>& run = kernels<T>();
  const bool reads_input = pass.plan.reads_input();
  const int64_t units = memory.units, width = memory.width, num_sums = pass.plan.num_sums;
  const auto step_of = [](const Tensor& tensor, int64_t step) {
    return tensor.mutable_data_ptr<T>() + (tensor.size(0) == 1 ? 0 : step) * tensor.stride(0);
  };
  const Tensor dstates_of_step = at::empty({1 + memory.num_nodes, pass.batch(), units}, pass.out.options());
  T *const dstates = dstates_of_step.mutable_data_ptr<T>(), *const dh = gradients.dh.mutable_data_ptr<T>();
  T* const dmask = gradients.dh_mask.defined() ? gradients.dh_mask.mutable_data_ptr<T>() : nullptr;
  const T* const dout = gradients.dout.const_data_ptr<T>();
  const int64_t chunks = (pass.batch() + kRowsInChunk - 1) / kRowsInChunk;
  std::vector<double> partial(gradients.sums.defined() ? chunks * num_sums : 0);

  for_rows(pass, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin, first = begin * units, size = rows * units;
    std::vector<T> masked(memory.mask == nullptr ? 0 : size);
    std::vector<const T*> a;
    std::vector<T*> c;
    for (int64_t step = pass.length() - 1; step >= 0; --step) {
      std::memset(dstates + first, 0, size * sizeof(T));
      run.recurrent_mean_backward(dh + first, dout + step * memory.size + first, memory.num_nodes, memory.size,
                                  dstates + memory.size + first, size);
      for (int64_t t = memory.num_nodes; t > 0; --t) {
        T* const dpre = step_of(gradients.dpre, step);
        for (int64_t row = begin; row < end; row += kRowsInChunk) {
          double* const sums = partial.empty() ? nullptr : partial.data() + row / kRowsInChunk * num_sums;
          run.recurrent_backward(nodes[t], memory.state(0, step), memory.pre(step), dstates + t * memory.size, dstates, dpre,
                                 sums, row, std::min(end, row + kRowsInChunk));
        }
        for (const Group<T>& group : groups[t]) {
          a.clear(), c.clear();
          for (const RecurrentEdge& edge : group.edges) {
            a.push_back(dpre + begin * width + edge.column);
            c.push_back(dstates + edge.source * memory.size + first);
          }
          group.weight.multiply(a, width, c, units, rows, true);
        }
      }
      std::memset(dh + first, 0, size * sizeof(T));
      if (!reads_input) continue;
      const T* const before = memory.before(step);
      T* const dpre = step_of(gradients.dpre_input, step);
      run.recurrent_backward(nodes[0], before, memory.pre_input(step), dstates, dh, dpre, nullptr, begin, end);
      if (step == 0 && !gradients.wants_h && dmask == nullptr) continue;
      const bool is_masked = memory.mask != nullptr;
      to_h.multiply({dpre + 2 * first}, 2 * units, {is_masked ? masked.data() : dh + first}, units, rows, !is_masked);
      if (is_masked) run.recurrent_mask(masked.data(), memory.mask + first, true, dh + first, size);
      if (dmask != nullptr) run.recurrent_mask(masked.data(), before + first, true, dmask + first, size);
    }
  });
  for (size_t i = 0; i < partial.size(); ++i) gradients.sums.mutable_data_ptr<double>()[i % num_sums] += partial[i];
}

}  // namespace

void recurrent_forward(const RecurrentPass& pass) {
  AT_DISPATCH_FLOATING_TYPES(pass.out.scalar_type(), "recurrent", [&] { forward<scalar_t>(pass); });
}

void recurrent_backward(const RecurrentPass& pass, const RecurrentGradients& gradients) {
  AT_DISPATCH_FLOATING_TYPES(pass.out.scalar_type(), "recurrent_backward", [&] { backward<scalar_t>(pass, gradients); });
}

}  // namespace advnas::cpu
