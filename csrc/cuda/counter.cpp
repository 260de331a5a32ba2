#include <map>
#include <mutex>

#include "cuda_pass.h"

#ifdef ADVNAS_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace advnas::cuda {
namespace {

bool is_capturing() {
#ifdef ADVNAS_CUDA
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
#else
  return false;
#endif
}

}  // namespace

Tensor counter(const Tensor& like, const OnDevice& device) {
  const auto make = [&] { return at::zeros({kCounters}, like.options().dtype(at::kInt)); };
  if (is_capturing()) return make();
  static std::mutex mutex;
  static auto* const kept = new std::map<std::pair<int, void*>, Tensor>;  // never destroyed: the device may be gone before
  const std::lock_guard lock(mutex);
  Tensor& found = (*kept)[{like.device().index(), device.stream()}];
  if (!found.defined()) found = make();
  return found;
}

}  // namespace advnas::cuda
