// layout.cu against a copy in two loops: the values are the same bits.
#include "../../csrc/kernels/layout.h"
#include "check.h"

namespace {

using namespace check;
using advnas::cuda::Images;

template <class T>
void test(const Images& s, bool has_y, bool has_relu, const std::string& what) {
  const int64_t pixels = int64_t(s.height) * s.width;
  std::vector<T> x = noise_with_zeros<T>(s.size(), 1);
  if (s.size() > 4) {
    x[0] = T(std::numeric_limits<float>::quiet_NaN());
    x[2] = T(std::numeric_limits<float>::infinity());
    x[4] = T(-std::numeric_limits<float>::infinity());
  }
  std::vector<double> expected(x.size()), positive(x.size());
  for (int64_t image = 0; image < s.batch; ++image) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t p = 0; p < pixels; ++p) {
        const double value = float(x[size_t((image * s.channels + c) * pixels + p)]);
        const auto at = size_t((image * pixels + p) * s.channels + c);
        expected[at] = value;
        positive[at] = check::relu(value);
      }
    }
  }
  const Buffer<T> from(x, "x");
  Buffer<T> y(x.size(), "y"), relu(x.size(), "relu");
  cuda_shim::clear_launches();
  advnas::cuda::to_channels_last<T>(from.data(), has_y ? y.data() : nullptr, has_relu ? relu.data() : nullptr, s, nullptr);
  if (has_y) expect_close(y, expected, std::vector<double>(x.size(), 0), what + ": y");
  if (has_relu) expect_close(relu, positive, std::vector<double>(x.size(), 0), what + ": relu");
}

}  // namespace

int main() {
  for_types([]<class T>() {
    for (const Images& s :
         std::vector<Images>{{1, 1, 1, 1}, {3, 1, 7, 3}, {2, 8, 8, 16}, {1, 5, 3, 33}, {5, 9, 4, 17}, {2, 9, 8, 65}}) {
      for (int outputs = 1; outputs <= 3; ++outputs) {
        under_orders(std::string(name_of<T>()) + " " + text(s),
                     [&](const std::string& what) { test<T>(s, outputs & 1, outputs & 2, what); });
      }
    }
    test<T>({0, 4, 4, 8}, true, true, "no images");
    if (kQuick) return;
    for (const Images& s : network_sizes()) {
      test<T>(s, true, true, "network " + text(s));
      expect_traffic<T>("to_channels_last", s, 3 * s.size(), 0);
    }
  });
  // More images than a grid has blocks in z.
  if (!kQuick) test<float>({65537, 1, 1, 1}, true, true, "65537 images");
  return finish();
}
