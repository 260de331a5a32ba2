// What happens to a result while it is in a register. A kernel asks for the lanes of a channel block, puts values at offsets of
// the image tensor, and finishes the lanes.
#pragma once

#include "conv_lanes.h"

namespace advnas::cpu::ADVNAS_ISA {

// z = v, and the sums of (v - origin) and its square: about 0 they would cancel where the mean is large beside the spread. The
// sums are taken in T over a block and then in double (flush), so that the error does not grow with the image.
template <class T>
class MomentsOutput {
 public:
  // sums: 3 * pad_to_lanes(channels) elements.
  MomentsOutput(T* z, const ConvMoments& moments, int64_t channels, T* sums)
      : z_(z),
        moments_(moments),
        channels_(channels),
        origin_(sums),
        sum_(sums + pad_to_lanes<T>(channels)),
        squares_(sum_ + pad_to_lanes<T>(channels)) {
    std::memset(sums, 0, size_t(3 * pad_to_lanes<T>(channels)) * sizeof(T));
    for (int64_t c = 0; c < channels && wanted(); ++c) moments.mean[c] = moments.m2[c] = 0;
  }
  bool wanted() const { return moments_.mean != nullptr; }
  int64_t channels() const { return channels_; }
  void set_origin(int64_t c, Vec<T> v) { store(origin_ + c, v); }

  class Lanes {
   public:
    Lanes(const MomentsOutput& to, int64_t c)
        : z_(to.z_ + c),
          sum_to_(to.sum_ + c),
          squares_to_(to.squares_ + c),
          origin_(load(to.origin_ + c)),
          sum_(load(sum_to_)),
          squares_(load(squares_to_)) {}
    void put(int64_t offset, Vec<T> v) {
      store(z_ + offset, v);
      add(v);
    }
    void put_part(int64_t offset, Vec<T> v, int64_t count) {
      store_part(z_ + offset, v, count);
      add(v);
    }
    void finish() {
      store(sum_to_, sum_);
      store(squares_to_, squares_);
    }

   private:
    void add(Vec<T> v) {
      const Vec<T> distance = v - origin_;
      sum_ += distance;
      squares_ += distance * distance;
    }
    T *z_, *sum_to_, *squares_to_;
    Vec<T> origin_, sum_, squares_;
  };
  Lanes lanes(int64_t c) const { return Lanes(*this, c); }

  void flush() {
    for (int64_t c = 0; c < channels_ && wanted(); ++c) {
      moments_.mean[c] += double(sum_[c]);
      moments_.m2[c] += double(squares_[c]);
    }
    std::memset(sum_, 0, size_t(2 * pad_to_lanes<T>(channels_)) * sizeof(T));
  }
  void finish(int64_t count) {
    if (!wanted() || count == 0) return;
    for (int64_t c = 0; c < channels_; ++c) {
      const double offset = moments_.mean[c] / double(count);
      moments_.m2[c] -= offset * moments_.mean[c];
      if (moments_.m2[c] < 0) moments_.m2[c] = 0;  // rounding; a NaN stays
      moments_.mean[c] = double(origin_[c]) + offset;
    }
  }

 private:
  T* z_;
  ConvMoments moments_;
  int64_t channels_;
  T *origin_, *sum_, *squares_;
};

// dx = [x > 0] v, or is added to.
template <class T, bool kAccumulate>
class InputGradientOutput {
 public:
  InputGradientOutput(const T* x, bool relu, T* dx, int64_t channels)
      : x_(x), dx_(dx), floor_(relu_floor<T>(relu)), channels_(channels) {}
  int64_t channels() const { return channels_; }

  class Lanes {
   public:
    Lanes(const InputGradientOutput& to, int64_t c) : x_(to.x_ + c), dx_(to.dx_ + c), floor_(to.floor_) {}
    void put(int64_t offset, Vec<T> v) {
      v = load(x_ + offset) > floor_ ? v : Vec<T>{};
      if constexpr (kAccumulate) v += load(dx_ + offset);
      store(dx_ + offset, v);
    }
    void put_part(int64_t offset, Vec<T> v, int64_t count) {
      v = load_part(x_ + offset, count) > floor_ ? v : Vec<T>{};
      if constexpr (kAccumulate) v += load_part(dx_ + offset, count);
      store_part(dx_ + offset, v, count);
    }
    void finish() {}

   private:
    const T* x_;
    T* dx_;
    Vec<T> floor_;
  };
  Lanes lanes(int64_t c) const { return Lanes(*this, c); }
  void set_origin(int64_t, Vec<T>) {}
  void flush() {}

 private:
  const T* x_;
  T* dx_;
  Vec<T> floor_;
  int64_t channels_;
};

}  // namespace advnas::cpu::ADVNAS_ISA
