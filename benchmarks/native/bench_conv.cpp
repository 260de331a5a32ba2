// ms for a batch of 64 images, one thread, of each fused convolution and of its parts; the kernels are interleaved, and the least
// and the median of many rounds are printed. Compile like tests/native/test_conv.cpp. Arguments: rounds, and the number of
// images.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/kernels/conv1x1.h"
#include "../../csrc/kernels/conv3x3.h"

namespace {

using namespace advnas;
namespace isa = advnas::cpu::ADVNAS_ISA;

struct Timed {
  std::string name;
  double flops;
  std::function<void()> run;
  std::vector<double> ms;
};

struct Problem {
  ConvKernels<float> kernels;
  ConvShape shape;
  int64_t size, images;
  std::vector<float> x, dy, z, dx, weight, packed, transposed, dpacked, coefficients, workspace;
  std::vector<double> mean, m2;

  Problem(int64_t size, const ConvShape& shape, int64_t images)
      : kernels(size == 3 ? isa::conv3x3_kernels<float>() : isa::conv1x1_kernels<float>()),
        shape(shape),
        size(size),
        images(images) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    const auto random = [&](int64_t count) {
      std::vector<float> values(count);
      for (float& v : values) v = normal(generator);
      return values;
    };
    const int64_t pixels = images * shape.height * shape.width;
    x = random(pixels * shape.in);
    dx = random(pixels * shape.in);
    dy = random(pixels * shape.out);
    z = random(pixels * shape.out);
    weight = random(shape.out * shape.in * size * size);
    coefficients = random(shape.out);
    packed.resize(kernels.packed_size(shape.in, shape.out));
    transposed.resize(kernels.packed_size(shape.out, shape.in));
    dpacked.resize(packed.size());
    workspace.resize(kernels.workspace_size(shape));
    mean.resize(shape.out);
    m2.resize(shape.out);
    pack();
  }
  WeightStrides strides() const { return {size * size * shape.in, size * size, size, 1}; }
  void pack() {
    kernels.pack(weight.data(), strides(), shape.in, shape.out, packed.data());
    kernels.pack_transposed(weight.data(), strides(), shape.in, shape.out, transposed.data());
  }
  void unpack() { kernels.unpack_gradient(dpacked.data(), 1, shape.in, shape.out, weight.data(), strides()); }
  void forward() {
    kernels.forward(x.data(), true, packed.data(), z.data(), {mean.data(), m2.data()}, images, shape, workspace.data());
  }
  void backward(bool wants_dx, bool wants_dw) {
    const float* const c = coefficients.data();
    kernels.backward({dy.data(), z.data(), c, c, c}, x.data(), true, transposed.data(), wants_dx ? dx.data() : nullptr, true,
                     wants_dw ? dpacked.data() : nullptr, images, shape, workspace.data());
  }
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 30;
  const int64_t images = argc > 2 ? std::atoi(argv[2]) : 64;
  std::vector<Problem> problems;
  for (const int64_t size : {3, 1}) {
    for (const ConvShape& shape : {ConvShape{32, 32, 16, 16}, ConvShape{16, 16, 32, 32}, ConvShape{8, 8, 64, 64}}) {
      problems.emplace_back(size, shape, images);
    }
  }
  std::vector<Timed> timed;
  for (Problem& p : problems) {
    const std::string name = std::to_string(p.size) + "x" + std::to_string(p.size) + " C=" + std::to_string(p.shape.in) + " ";
    const double flops = 2.0 * double(images * p.shape.height * p.shape.width * p.shape.in * p.shape.out * p.size * p.size);
    timed.push_back({name + "pack x2", 0, [&p] { p.pack(); }, {}});
    timed.push_back({name + "unpack", 0, [&p] { p.unpack(); }, {}});
    timed.push_back({name + "forward", flops, [&p] { p.forward(); }, {}});
    timed.push_back({name + "dx", flops, [&p] { p.backward(true, false); }, {}});
    timed.push_back({name + "dw", flops, [&p] { p.backward(false, true); }, {}});
    timed.push_back({name + "dx+dw", 2 * flops, [&p] { p.backward(true, true); }, {}});
  }
  for (int round = 0; round < rounds; ++round) {
    for (Timed& t : timed) {
      const auto start = std::chrono::steady_clock::now();
      t.run();
      t.ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
  }
  std::printf("%-18s %8s %8s %14s\n", "", "min ms", "median", "direct GF/s");
  for (Timed& t : timed) {
    std::sort(t.ms.begin(), t.ms.end());
    std::printf("%-18s %8.3f %8.3f %14.0f\n", t.name.c_str(), t.ms[0], t.ms[t.ms.size() / 2], t.flops / t.ms[0] / 1e6);
  }
}
