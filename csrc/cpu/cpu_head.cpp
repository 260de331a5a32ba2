#include "cpu_head.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "cpu_pass.h"
#include "parallel.h"

namespace advnas {
namespace {

using at::Tensor;

template <class Body>
void for_images(int64_t images, const Body& body) {
  parallel_for(images, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i);
  });
}

template <class T>
ScaleShift<std::vector<T>> map_of(const NormState& state) {
  ScaleShift<std::vector<T>> map;
  for (size_t c = 0; c < state.mean.size(); ++c) {
    const auto [scale, shift] = batch_norm_forward(1, state.gamma[c], state.beta[c], state.mean[c], state.rstd[c]);
    map.scale.push_back(T(scale));
    map.shift.push_back(T(shift));
  }
  return map;
}

template <class T>
Tensor forward(const Tensor& x, const Normalisation& norm, NormState& state, double eps, double momentum) {
  const auto& kernels = cpu::kernels<T>();
  const ImageViews<const T> images(x);
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  state = parameters_of(norm, channels);
  if (norm.statistics == Statistics::kBatch) {
    Moments moments{Row(batch * channels), Row(batch * channels)};
    for_images(batch, [&](int64_t i) {
      kernels.channel_moments(images[i], pixels, channels, moments.mean.data() + i * channels, moments.m2.data() + i * channels);
    });
    take_batch_statistics(norm, state, moments, batch, pixels, eps, momentum);
  } else {
    take_fixed_statistics(norm, state, eps);
  }
  const auto map = map_of<T>(state);
  const Tensor h = at::empty({batch, channels}, x.options());
  T* const features = h.mutable_data_ptr<T>();
  for_images(batch,
             [&](int64_t i) { kernels.head_forward(images[i], pointers(map), pixels, channels, features + i * channels); });
  return h;
}

template <class T>
HeadGradients backward(const Tensor& x, const Tensor& dh, const Normalisation& norm, const NormState& state, bool wants_x) {
  const auto& kernels = cpu::kernels<T>();
  const ImageViews<const T> images(x);
  const int64_t batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  const T* const dfeatures = dh.const_data_ptr<T>();
  const auto map = map_of<T>(state);
  const auto means = cast<T>(state.mean);
  Row partial(batch * 2 * channels);
  for_images(batch, [&](int64_t i) {
    double* const sums = partial.data() + i * 2 * channels;
    kernels.head_sums(images[i], dfeatures + i * channels, pointers(map), means.data(), pixels, channels, sums, sums + channels);
  });
  const Row sums = sum_images(partial, 2 * channels);
  const NormGradients gradients = gradients_of(norm.statistics, state, 1, sums.data(), sums.data() + channels, batch * pixels);
  HeadGradients result{Tensor(), tensor_of(gradients.dgamma).to(x.scalar_type()), tensor_of(gradients.dbeta).to(x.scalar_type())};
  if (!wants_x) return result;
  const auto input = cast<T>(gradients.input);
  result.x = empty_images(batch, shape_of(x), x.scalar_type());
  const ImageViews<T> dx(result.x);
  for_images(batch, [&](int64_t i) {
    kernels.head_backward(images[i], dfeatures + i * channels, pointers(map), pointers(input), pixels, channels, dx[i]);
  });
  return result;
}

}  // namespace

Tensor head_forward(const Tensor& x, const Normalisation& norm, NormState& state, double eps, double momentum) {
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "head", [&] { return forward<scalar_t>(x, norm, state, eps, momentum); });
}

HeadGradients head_backward(const Tensor& x, const Tensor& dh, const Normalisation& norm, const NormState& state, bool wants_x) {
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "head_backward",
                                    [&] { return backward<scalar_t>(x, dh, norm, state, wants_x); });
}

}  // namespace advnas
