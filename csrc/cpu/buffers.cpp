#include "buffers.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>

namespace advnas {
namespace {

class BufferAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = take(bytes);
    return {data, new Lease{data, bytes}, &BufferAllocator::give_back, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Never destroyed: tensors may outlive every static object.
  static BufferAllocator& get() {
    static auto* const allocator = new BufferAllocator;
    return *allocator;
  }

 private:
  struct Lease {
    void* data;
    size_t bytes;
  };

  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    void* const data = find(bytes);
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return data;
  }

  void* find(size_t bytes) {
    for (auto it = kept_.rbegin(); it != kept_.rend(); ++it) {  // the last returned is the warmest
      if (it->bytes != bytes) continue;
      void* const data = it->data;
      kept_bytes_ -= bytes;
      kept_.erase(std::next(it).base());
      return data;
    }
    try {
      return c10::alloc_cpu(bytes);
    } catch (const c10::Error&) {  // out of memory, of which some is here
      free_down_to(0);
      return c10::alloc_cpu(bytes);
    }
  }

  void free_down_to(size_t bytes) {
    while (kept_bytes_ > bytes) {
      kept_bytes_ -= kept_.front().bytes;
      c10::free_cpu(kept_.front().data);
      kept_.pop_front();
    }
  }

  static void give_back(void* context) {
    const std::unique_ptr<Lease> lease(static_cast<Lease*>(context));
    BufferAllocator& self = get();
    const std::lock_guard lock(self.mutex_);
    self.in_use_ -= lease->bytes;
    self.kept_bytes_ += lease->bytes;
    self.kept_.push_back(*lease);
    self.free_down_to(self.peak_);
  }

  std::mutex mutex_;
  std::deque<Lease> kept_;  // oldest first; some dozens
  size_t in_use_ = 0, peak_ = 0, kept_bytes_ = 0;
};

}  // namespace

constexpr c10::DispatchKeySet kHost(c10::DispatchKey::CPU);

at::Tensor empty_buffer(at::IntArrayRef sizes, at::ScalarType type) {
  const auto format = sizes.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return at::detail::empty_generic(sizes, &BufferAllocator::get(), kHost, type, format);
}

at::Tensor empty_buffer_like(const at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) return at::empty_like(tensor);
  return at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &BufferAllocator::get(), kHost,
                                           tensor.scalar_type());
}

}  // namespace advnas
