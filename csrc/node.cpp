#include "node.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "buffers.h"
#include "kernels/cpu/isa.h"

namespace advnas {
namespace {

using at::Tensor;

ImageShape shape_of(const Tensor& x) { return {x.size(2), x.size(3), x.size(1)}; }
int64_t image_size(const Tensor& x) { return x.size(1) * x.size(2) * x.size(3); }

template <class T>
std::vector<T> cast(const Row& row) {
  return {row.begin(), row.end()};
}

template <class T>
const T* image(const Tensor& x, int64_t index) {
  return x.const_data_ptr<T>() + index * image_size(x);
}

// Calls body(image) for every image, images of one thread in a row.
template <class Body>
void for_images(const Tensor& x, const Body& body) {
  at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// The sources of one node, as the kernels take them.
template <class T>
struct Gathered {
  Gathered(const std::vector<Scaled>& scaled, const std::vector<Pooled>& pooled, const std::vector<Tensor>& masked)
      : scaled(scaled), pooled(pooled), masked(masked) {
    for (const Scaled& source : scaled) {
      rows.push_back(cast<T>(source.scale));
      row_pointers.push_back(rows.back().data());
    }
    for (const Pooled& source : pooled) gates.push_back(T(source.gate));
  }

  // Calls body(Sources of the image).
  template <class Body>
  void with_image(int64_t index, const Body& body) const {
    std::vector<const T*> pointers;
    for (const Scaled& source : scaled) pointers.push_back(image<T>(source.image, index));
    for (const Pooled& source : pooled) pointers.push_back(image<T>(source.image, index));
    for (const Tensor& source : masked) pointers.push_back(image<T>(source, index));
    const T* const* at = pointers.data();
    body(Sources<T>{at, row_pointers.data(), int64_t(scaled.size()), at + scaled.size(), gates.data(), int64_t(pooled.size()),
                    at + scaled.size() + pooled.size(), int64_t(masked.size())});
  }

  std::vector<Scaled> scaled;
  std::vector<Pooled> pooled;
  std::vector<Tensor> masked;
  std::vector<std::vector<T>> rows;
  std::vector<const T*> row_pointers;
  std::vector<T> gates;
};

// partial: [batch, width] -> [width], in the order of the images.
Row sum_images(const Row& partial, int64_t batch, int64_t width) {
  Row sum(width);
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t c = 0; c < width; ++c) sum[c] += partial[i * width + c];
  }
  return sum;
}

}  // namespace

Tensor node_forward(const Tensor& like, const std::vector<Scaled>& scaled, const std::vector<Pooled>& pooled, const Row& bias) {
  const Tensor y = empty_buffer(like.sizes(), like.scalar_type());
  const ImageShape shape = shape_of(y);
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "node_forward", [&] {
    const Gathered<scalar_t> gathered(scaled, pooled, {});
    const auto typed_bias = cast<scalar_t>(bias);
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, y.size(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> row(pooled.empty() ? 0 : pool_workspace(shape));
      for (int64_t i = begin; i < end; ++i) {
        gathered.with_image(i, [&](const Sources<scalar_t>& sources) {
          cpu::kernels<scalar_t>().node_forward(sources, typed_bias.data(), out + i * image_size(y), shape, row.data());
        });
      }
    });
  });
  return y;
}

NodeGradient node_backward(const Tensor& like, const Tensor& x, const std::vector<Scaled>& scaled,
                           const std::vector<Pooled>& pooled, const std::vector<Tensor>& masked, bool want_gate_grad) {
  const Tensor dx = empty_buffer(like.sizes(), like.scalar_type());
  const ImageShape shape = shape_of(dx);
  const int64_t batch = dx.size(0), num_scaled = int64_t(scaled.size()), num_pooled = int64_t(pooled.size());
  Row scaled_partial(want_gate_grad ? batch * num_scaled : 0), pooled_partial(want_gate_grad ? batch * num_pooled : 0);
  AT_DISPATCH_FLOATING_TYPES(dx.scalar_type(), "node_backward", [&] {
    const Gathered<scalar_t> gathered(scaled, pooled, masked);
    scalar_t* out = dx.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> row(pooled.empty() ? 0 : pool_workspace(shape));
      for (int64_t i = begin; i < end; ++i) {
        gathered.with_image(i, [&](const Sources<scalar_t>& sources) {
          cpu::kernels<scalar_t>().node_backward(sources, x.defined() ? image<scalar_t>(x, i) : nullptr, out + i * image_size(dx),
                                                 want_gate_grad ? scaled_partial.data() + i * num_scaled : nullptr,
                                                 want_gate_grad ? pooled_partial.data() + i * num_pooled : nullptr, shape,
                                                 row.data());
        });
      }
    });
  });
  if (!want_gate_grad) return {dx, {}, {}};
  return {dx, sum_images(scaled_partial, batch, num_scaled), sum_images(pooled_partial, batch, num_pooled)};
}

// Images are joined by the parallel rule of Chan, Golub and LeVeque (1983): exact where the mean is large beside the spread.
Moments channel_moments(const Tensor& z) {
  const int64_t batch = z.size(0), channels = z.size(1), pixels = z.size(2) * z.size(3);
  Row means(batch * channels), m2s(batch * channels);
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "channel_moments", [&] {
    for_images(z, [&](int64_t i) {
      cpu::kernels<scalar_t>().channel_moments(image<scalar_t>(z, i), pixels, channels, means.data() + i * channels,
                                               m2s.data() + i * channels);
    });
  });
  Moments moments{Row(channels), Row(channels)};
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = means[i * channels + c] - moments.mean[c];
      moments.mean[c] += distance / double(i + 1);
      moments.variance[c] += m2s[i * channels + c] + distance * distance * double(pixels) * double(i) / double(i + 1);
    }
  }
  for (double& variance : moments.variance) variance /= double(std::max<int64_t>(1, batch * pixels));
  return moments;
}

BatchNormSums batch_norm_sums(const Tensor& dy, const std::vector<Tensor>& z, const std::vector<Row>& mean) {
  const int64_t batch = dy.size(0), channels = dy.size(1), num = int64_t(z.size());
  const int64_t pixels = dy.size(2) * dy.size(3), width = (1 + num) * channels;
  Row partial(batch * width);
  AT_DISPATCH_FLOATING_TYPES(dy.scalar_type(), "batch_norm_sums", [&] {
    std::vector<std::vector<scalar_t>> rows;
    std::vector<const scalar_t*> means;
    for (const Row& row : mean) rows.push_back(cast<scalar_t>(row));
    for (const auto& row : rows) means.push_back(row.data());
    for_images(dy, [&](int64_t i) {
      std::vector<const scalar_t*> images;
      std::vector<double*> s2;
      for (int64_t k = 0; k < num; ++k) {
        images.push_back(image<scalar_t>(z[k], i));
        s2.push_back(partial.data() + i * width + (1 + k) * channels);
      }
      cpu::kernels<scalar_t>().node_sums(image<scalar_t>(dy, i), images.data(), means.data(), num, pixels, channels,
                                             partial.data() + i * width, s2.data());
    });
  });
  const Row sum = sum_images(partial, batch, width);
  BatchNormSums sums{Row(sum.begin(), sum.begin() + channels), {}};
  for (int64_t k = 0; k < num; ++k) sums.s2.emplace_back(sum.begin() + (1 + k) * channels, sum.begin() + (2 + k) * channels);
  return sums;
}

Tensor batch_norm_input_gradient(const Tensor& dy, const Tensor& z, const Row& of_dy, const Row& of_z, const Row& constant) {
  const Tensor dz = empty_buffer(dy.sizes(), dy.scalar_type());
  const int64_t channels = dy.size(1), pixels = dy.size(2) * dy.size(3);
  AT_DISPATCH_FLOATING_TYPES(dy.scalar_type(), "batch_norm_input_gradient", [&] {
    const auto a = cast<scalar_t>(of_dy), b = cast<scalar_t>(of_z), c = cast<scalar_t>(constant);
    scalar_t* out = dz.mutable_data_ptr<scalar_t>();
    for_images(dy, [&](int64_t i) {
      cpu::kernels<scalar_t>().batch_norm_input_gradient(image<scalar_t>(dy, i), image<scalar_t>(z, i), a.data(), b.data(), c.data(),
                                                         out + i * image_size(dz), pixels, channels);
    });
  });
  return dz;
}

}  // namespace advnas
