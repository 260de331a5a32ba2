// One convolution, prepared for the images of a batch: packed weights, the choice between the direct and the Winograd kernels,
// workspace.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cstdlib>
#include <string_view>

#include "kernels/cpu/isa.h"

namespace advnas {

// Where Winograd is faster, by measurement: from 8 channels on, and where whole tiles waste less than 0.4 of their pixels. The
// environment variable ADVNAS_WINOGRAD=0 or 1 decides for all 3x3 convolutions.
inline bool takes_winograd(const ConvolutionShape& shape) {
  if (shape.size != 3) return false;
  if (const char* const forced = std::getenv("ADVNAS_WINOGRAD")) return std::string_view(forced) == "1";
  const auto whole = [](int64_t side) { return (side + 3) / 4 * 4; };
  return shape.in >= 8 && shape.height * shape.width >= 64 &&
         10 * shape.height * shape.width >= 6 * whole(shape.height) * whole(shape.width);
}

template <class T>
class Convolver {
 public:
  // weight: [out, in, size, size].
  Convolver(const ImageShape& image, const at::Tensor& weight)
      : shape_{image.height, image.width, weight.size(1), weight.size(0), weight.size(2)},
        winograd_(takes_winograd(shape_)),
        weight_(weight) {}

  const ConvolutionShape& shape() const { return shape_; }
  int64_t frame() const { return frame_elements(shape_.height, shape_.width, std::max(shape_.in, shape_.out), shape_.size); }
  int64_t workspace() const { return winograd_ ? winograd_workspace(shape_) : 0; }

  void prepare_forward() { packed_ = pack(weight_.permute({2, 3, 1, 0}).contiguous()); }
  void prepare_input_gradient() { packed_ = pack(weight_.flip({2, 3}).permute({2, 3, 0, 1}).contiguous()); }
  bool gives_input_gradient() const { return packed_.defined(); }
  // ranges: how many threads accumulate.
  void prepare_weight_gradient(int64_t ranges) {
    dweight_ =
        at::zeros({ranges, winograd_ ? kWinogradPlaces : shape_.size * shape_.size, shape_.in, shape_.out}, weight_.options());
  }
  bool gives_weight_gradient() const { return dweight_.defined(); }

  // The sum over a frame, of the input or of the gradient, as prepared.
  void run(const T* frame, T* y, T* workspace) const {
    const T* const weight = packed_.const_data_ptr<T>();
    if (winograd_) {
      cpu::kernels<T>().winograd_convolve(frame, weight, y, shape_, workspace);
    } else {
      cpu::kernels<T>().convolve(frame, weight, y, shape_);
    }
  }

  void add_weight_gradient(int64_t range, const T* frame, const T* dz_frame, T* workspace) const {
    T* const sum = dweight_.mutable_data_ptr<T>() + range * dweight_.stride(0);
    if (winograd_) {
      cpu::kernels<T>().winograd_weight_gradient(frame, dz_frame, sum, shape_, workspace);
    } else {
      cpu::kernels<T>().convolve_weight_gradient(frame, dz_frame, sum, shape_);
    }
  }

  // In the shape and layout of the weight.
  at::Tensor weight_gradient() const {
    at::Tensor sum = dweight_.sum(0);
    if (winograd_) {
      const at::Tensor places = sum;
      sum = at::empty({9, shape_.in, shape_.out}, places.options());
      cpu::kernels<T>().winograd_finish(places.const_data_ptr<T>(), sum.mutable_data_ptr<T>(), shape_.in, shape_.out);
    }
    const at::Tensor taps = sum.view({shape_.size, shape_.size, shape_.in, shape_.out});
    return at::empty_like(weight_).copy_(taps.permute({3, 2, 0, 1}));
  }

 private:
  at::Tensor pack(const at::Tensor& taps) const {
    if (!winograd_) return taps;
    const at::Tensor places = at::empty({kWinogradPlaces, taps.size(2), taps.size(3)}, taps.options());
    cpu::kernels<T>().winograd_weight(taps.const_data_ptr<T>(), places.mutable_data_ptr<T>(), taps.size(2), taps.size(3));
    return places;
  }

  ConvolutionShape shape_;
  bool winograd_;
  at::Tensor weight_, packed_, dweight_;
};

}  // namespace advnas
