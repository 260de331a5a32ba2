// The convolutions that leave a node, prepared for the images of a batch: what comes before them, packed weights, the choice of
// kernels. Those that are of one shape and take the node alike are together, so that what they take is made once.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "../kernels/convolution.h"
#include "../pass.h"
#include "shares.h"

namespace advnas {

template <class T>
class Convolver {
 public:
  virtual ~Convolver() = default;

  // How many images it likes to take at once.
  virtual int64_t group() const = 0;
  // Elements of workspace that so many images need, in either pass.
  virtual int64_t workspace(int64_t images) const = 0;

  // Elements of the weight gradients' sums over some images.
  virtual int64_t sum_elements() const = 0;

  // What these prepare is there when the tasks are done.
  virtual void prepare_forward(BackgroundTasks& tasks) = 0;
  // Which gradients are wanted; shares: into how many the batch is cut.
  virtual void prepare_backward(bool input, bool weight, int64_t shares, BackgroundTasks& tasks) = 0;

  // z, dz: of each convolution.
  virtual void forward(const T* x, T* const* z, int64_t images, T* workspace) const = 0;
  // Writes dx or, with `add`, adds to it; the same with the weight gradient of the share and `add_weight`.
  virtual void backward(int64_t share, bool add_weight, const T* x, const OutputGradient<T>* dz, T* dx, bool add, int64_t images,
                        T* workspace) = 0;
  // Of a convolution's weight and depthwise, in their shapes and layouts, when the tasks are done; undefined if not wanted.
  virtual std::pair<at::Tensor, at::Tensor> weight_gradients(size_t which, BackgroundTasks& tasks) const = 0;
};

inline constexpr size_t kMostSiblings = 4;

template <class T>
struct Siblings {
  std::vector<Term> terms;
  std::unique_ptr<Convolver<T>> convolver;
};

// The convolutions that leave `node`. kind: those of different kinds are apart, and one of a negative kind is left out.
template <class T>
std::vector<Siblings<T>> siblings_that_leave(const Pass& pass, int64_t node, const std::function<int(const Term&)>& kind);

}  // namespace advnas
