#include "convolver.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "../kernels/cpu/isa.h"
#include "buffers.h"
#include "cpu_pass.h"
#include "pack.h"

namespace advnas {
namespace {

using at::Tensor;

// Where Winograd is faster, by measurement: from 8 channels on, and where whole tiles waste less than 0.4 of their pixels. The
// environment variable ADVNAS_WINOGRAD=0 or 1 decides for all 3x3 convolutions.
bool takes_winograd(const ConvolutionShape& shape) {
  if (shape.size != 3 || shape.stride != 1) return false;
  if (const char* const forced = std::getenv("ADVNAS_WINOGRAD")) return std::string_view(forced) == "1";
  const int64_t pixels = shape.height * shape.width, tiled = 16 * tiles_along(shape.height) * tiles_along(shape.width);
  return shape.in >= 8 && shape.out >= 8 && pixels >= 64 && 10 * pixels >= 6 * tiled;
}

// Partial sums of a weight gradient, a part for each share of the batch.
template <class T>
struct Sums {
  Tensor data;
  int64_t size = 0;

  void allocate(int64_t shares, int64_t elements_each, at::ScalarType type) {
    size = elements_each;
    data = empty_buffer({shares * size}, type);
  }
  bool wanted() const { return data.defined(); }
  T* of(int64_t share) const { return data.mutable_data_ptr<T>() + share * size; }
};

// Packed weights, one for each convolution.
template <class T>
struct Packed {
  std::vector<Tensor> kept;
  std::vector<const T*> data;

  void add(const Tensor& packed) {
    kept.push_back(packed);
    data.push_back(packed.const_data_ptr<T>());
  }
};

template <class T>
class Dense final : public Convolver<T> {
 public:
  Dense(const ImageShape& x, const Piece& piece, std::vector<Tensor> weights)
      : x_(x), prologue_(piece.prologue), weights_(std::move(weights)), num_(int64_t(weights_.size())) {
    const ImageShape inner = shape_after_prologue(x, prologue_);
    const Tensor& weight = weights_[0];
    shape_ = {inner.height, inner.width, weight.size(1), weight.size(0), weight.size(2), piece.stride};
    gradient_shape_ = {shape_.out_height(), shape_.out_width(), shape_.out, shape_.in, shape_.size, 1};
    winograd_ = takes_winograd(shape_);
    in_frame_ = frame_elements(shape_.input(), shape_.size);
    out_frame_ = frame_elements(shape_.output(), shape_.size);
  }

  int64_t group() const override { return winograd_ ? strip_images(shape_) : 1; }
  int64_t workspace(int64_t images) const override {
    const int64_t strips = winograd_ ? std::max(winograd_workspace(shape_), winograd_workspace(gradient_shape_)) : 0;
    return images * (in_frame_ + num_ * out_frame_ + elements(shape_.input())) + strips;
  }

  int64_t sum_elements() const override { return num_ * sum_size(); }

  void prepare_forward(BackgroundTasks& tasks) override {
    for (const Tensor& weight : weights_) forward_.add(pack_forward<T>(weight, winograd_, tasks));
  }
  void prepare_backward(bool input, bool weight, int64_t shares, BackgroundTasks& tasks) override {
    shares_ = shares;
    for (const Tensor& w : weights_) {
      if (input) transposed_.add(pack_transposed<T>(w, shape_.stride, winograd_, tasks));
      if (weight) sums_.emplace_back().allocate(shares, sum_size(), w.scalar_type());
    }
  }

  void forward(const T* x, T* const* z, int64_t images, T* workspace) const override {
    const auto& kernels = cpu::kernels<T>();
    kernels.frame_input(x, workspace, x_, images, prologue_, shape_.size);
    if (winograd_) {
      kernels.winograd_convolve(workspace, forward_.data.data(), z, num_, shape_, images, workspace + images * in_frame_);
    } else {
      for (int64_t k = 0; k < num_; ++k) kernels.convolve(workspace, forward_.data[k], z[k], shape_, images);
    }
  }

  void backward(int64_t share, bool add_weight, const T* x, const OutputGradient<T>* dz, T* dx, bool add, int64_t images,
                T* workspace) override {
    const auto& kernels = cpu::kernels<T>();
    T* const frames = workspace;
    T* const dp = frames + images * in_frame_;
    T* const dz_frames = dp + images * elements(shape_.input());
    T* const rest = dz_frames + num_ * images * out_frame_;
    const T* of_dz[kMostSiblings];
    for (int64_t k = 0; k < num_; ++k) {
      T* const frame = dz_frames + k * images * out_frame_;
      of_dz[k] = frame;
      kernels.frame_gradient(dz[k], frame, shape_.output(), images, shape_.size);
      if (transposed_.data.empty()) continue;
      if (winograd_) {
        kernels.winograd_convolve(frame, &transposed_.data[k], &dp, 1, gradient_shape_, images, rest);
      } else {
        kernels.convolve_input_gradient(frame, transposed_.data[k], dp, shape_, images);
      }
      kernels.input_gradient(dp, x, dx, x_, images, prologue_, add || k > 0);
    }
    if (sums_.empty()) return;
    T* sums[kMostSiblings];
    for (int64_t k = 0; k < num_; ++k) sums[k] = sums_[k].of(share);
    kernels.frame_input(x, frames, x_, images, prologue_, shape_.size);
    if (winograd_) {
      kernels.winograd_weight_gradient(frames, of_dz, sums, num_, shape_, images, add_weight, rest);
    } else {
      for (int64_t k = 0; k < num_; ++k) {
        kernels.convolve_weight_gradient(frames, of_dz[k], sums[k], shape_, images, add_weight);
      }
    }
  }

  std::pair<Tensor, Tensor> weight_gradients(size_t which, BackgroundTasks& tasks) const override {
    if (sums_.empty()) return {};
    return {unpack_gradient<T>(sums_[which].data, shares_, winograd_, weights_[which], tasks), Tensor()};
  }

 private:
  int64_t sum_size() const {
    const int64_t taps = shape_.in * shape_.out;
    return winograd_ ? kWinogradPlaces * weight_place(taps) : shape_.size * shape_.size * taps;
  }

  ImageShape x_;
  Prologue prologue_;
  std::vector<Tensor> weights_;
  int64_t num_;
  ConvolutionShape shape_, gradient_shape_;
  bool winograd_;
  int64_t in_frame_, out_frame_, shares_ = 0;
  Packed<T> forward_, transposed_;
  std::vector<Sums<T>> sums_;
};

// A depthwise convolution, possibly dilated, and the 1x1 convolution after it. Its output is made again in the backward pass.
template <class T>
class Separable final : public Convolver<T> {
 public:
  Separable(const ImageShape& x, const Piece& piece, const Convolution& convolution)
      : prologue_(piece.prologue),
        weight_(convolution.weight),
        depthwise_weight_(convolution.depthwise),
        depthwise_{x, depthwise_weight_.size(2), piece.dilation, piece.stride},
        pointwise_{depthwise_.output().height, depthwise_.output().width, x.channels, weight_.size(0), 1, 1},
        frame_(frame_elements(x, depthwise_.extent())) {}

  int64_t group() const override { return 1; }
  int64_t workspace(int64_t images) const override {
    return images * (2 * frame_ + elements(pointwise_.input()) + elements(depthwise_.image) + elements(pointwise_.output()));
  }

  int64_t sum_elements() const override { return weight_.numel() + depthwise_weight_.numel(); }

  void prepare_forward(BackgroundTasks& tasks) override {
    taps_ = pack_forward<T>(depthwise_weight_, false, tasks);
    packed_ = pack_forward<T>(weight_, false, tasks);
  }
  void prepare_backward(bool input, bool weight, int64_t shares, BackgroundTasks& tasks) override {
    shares_ = shares;
    taps_ = pack_forward<T>(depthwise_weight_, false, tasks);
    transposed_ = pack_transposed<T>(weight_, 1, false, tasks);
    flipped_ = input ? depthwise_weight_.flip({2, 3}) : Tensor();
    if (input) rotated_ = pack_forward<T>(flipped_, false, tasks);
    if (weight) {
      sums_.allocate(shares, weight_.numel(), weight_.scalar_type());
      depthwise_sums_.allocate(shares, depthwise_weight_.numel(), weight_.scalar_type());
    }
  }

  void forward(const T* x, T* const* z, int64_t images, T* workspace) const override {
    const T* const between = run_depthwise(x, images, workspace);
    cpu::kernels<T>().convolve(between, packed_.const_data_ptr<T>(), z[0], pointwise_, images);
  }

  void backward(int64_t share, bool add_weight, const T* x, const OutputGradient<T>* dz, T* dx, bool add, int64_t images,
                T* workspace) override {
    const auto& kernels = cpu::kernels<T>();
    T* const frames = workspace;
    const T* const between = sums_.wanted() ? run_depthwise(x, images, frames) : nullptr;
    T* const gradient_frames = frames + images * (frame_ + elements(pointwise_.input()));
    T* const dbetween = gradient_frames + images * frame_;
    T* const dz_images = dbetween + images * elements(depthwise_.image);  // dbetween becomes the gradient of the input
    kernels.frame_gradient(dz[0], dz_images, pointwise_.output(), images, 1);
    kernels.convolve_input_gradient(dz_images, transposed_.const_data_ptr<T>(), dbetween, pointwise_, images);
    if (sums_.wanted()) {
      kernels.convolve_weight_gradient(between, dz_images, sums_.of(share), pointwise_, images, add_weight);
      kernels.depthwise_weight_gradient(frames, dbetween, depthwise_sums_.of(share), depthwise_, images, add_weight);
    }
    if (rotated_.defined()) {
      kernels.depthwise_spread(dbetween, gradient_frames, depthwise_, images);
      kernels.depthwise(gradient_frames, rotated_.const_data_ptr<T>(), dbetween, depthwise_.dense(), images);
      kernels.input_gradient(dbetween, x, dx, depthwise_.image, images, prologue_, add);
    }
  }

  std::pair<Tensor, Tensor> weight_gradients(size_t, BackgroundTasks& tasks) const override {
    if (!sums_.wanted()) return {};
    return {unpack_gradient<T>(sums_.data, shares_, false, weight_, tasks),
            unpack_gradient<T>(depthwise_sums_.data, shares_, false, depthwise_weight_, tasks)};
  }

 private:
  // Leaves frames and, behind them, the depthwise output, which it returns.
  const T* run_depthwise(const T* x, int64_t images, T* frames) const {
    const auto& kernels = cpu::kernels<T>();
    T* const between = frames + images * frame_;
    kernels.frame_input(x, frames, depthwise_.image, images, prologue_, depthwise_.extent());
    kernels.depthwise(frames, taps_.const_data_ptr<T>(), between, depthwise_, images);
    return between;
  }

  Prologue prologue_;
  Tensor weight_, depthwise_weight_, flipped_, taps_, rotated_, packed_, transposed_;
  DepthwiseShape depthwise_;
  ConvolutionShape pointwise_;
  int64_t frame_, shares_ = 0;
  Sums<T> sums_, depthwise_sums_;
};

bool are_alike(const Pass& pass, const Term& one, const Term& other) {
  const Convolution &a = pass.convolutions[one.convolution], &b = pass.convolutions[other.convolution];
  return !a.depthwise.defined() && !b.depthwise.defined() && one.piece.prologue == other.piece.prologue &&
         one.piece.stride == other.piece.stride && a.weight.sizes() == b.weight.sizes();
}

template <class T>
std::unique_ptr<Convolver<T>> make_convolver(const Pass& pass, int64_t node, const std::vector<Term>& terms) {
  const Convolution& first = pass.convolutions[terms[0].convolution];
  if (first.depthwise.defined()) return std::make_unique<Separable<T>>(pass.shapes[node], terms[0].piece, first);
  std::vector<Tensor> weights;
  for (const Term& term : terms) weights.push_back(pass.convolutions[term.convolution].weight);
  return std::make_unique<Dense<T>>(pass.shapes[node], terms[0].piece, std::move(weights));
}

}  // namespace

template <class T>
std::vector<Siblings<T>> siblings_that_leave(const Pass& pass, int64_t node, const std::function<int(const Term&)>& kind) {
  std::vector<Siblings<T>> all;
  for (const Term& term : pass.plan.out_of[node]) {
    if (term.convolution < 0 || kind(term) < 0) continue;
    const auto joins = [&](const Siblings<T>& siblings) {
      const Term& first = siblings.terms[0];
      return siblings.terms.size() < kMostSiblings && kind(first) == kind(term) && are_alike(pass, first, term);
    };
    const auto place = std::find_if(all.begin(), all.end(), joins);
    (place == all.end() ? all.emplace_back() : *place).terms.push_back(term);
  }
  for (Siblings<T>& siblings : all) siblings.convolver = make_convolver<T>(pass, node, siblings.terms);
  return all;
}

template std::vector<Siblings<float>> siblings_that_leave(const Pass&, int64_t, const std::function<int(const Term&)>&);
template std::vector<Siblings<double>> siblings_that_leave(const Pass&, int64_t, const std::function<int(const Term&)>&);

}  // namespace advnas
