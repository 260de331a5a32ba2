// Which tensors the CUDA kernels take, in which element types, and where they run: on a GPU (ADVNAS_CUDA), or for tests on the
// host with the kernels on the shim of tests/cuda_shim (ADVNAS_SHIM), which takes every tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#if defined(ADVNAS_CUDA) || defined(ADVNAS_SHIM)
#define ADVNAS_DEVICE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#ifdef ADVNAS_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace advnas {

inline bool on_device([[maybe_unused]] const at::Tensor& x) {
#if defined(ADVNAS_SHIM)
  return true;
#elif defined(ADVNAS_CUDA)
  return x.is_cuda();
#else
  return false;
#endif
}

#ifdef ADVNAS_DEVICE
inline constexpr bool kHasDevice = true;

inline bool has_device_type(at::ScalarType type) { return type == at::kFloat || type == at::kHalf || type == at::kBFloat16; }

// Calls body with a null pointer of the kernels' element type, which has the same bits as ATen's.
template <class Body>
auto for_device_type(at::ScalarType type, const Body& body) {
  TORCH_CHECK_TYPE(has_device_type(type), "advnas_ext: the CUDA kernels take float32, float16 and bfloat16, got ", type);
  if (type == at::kHalf) return body(static_cast<__half*>(nullptr));
  if (type == at::kBFloat16) return body(static_cast<__nv_bfloat16*>(nullptr));
  return body(static_cast<float*>(nullptr));
}

// While it lives, the device of x is the current one; stream() is where its work goes.
class OnDevice {
 public:
#ifdef ADVNAS_CUDA
  explicit OnDevice(const at::Tensor& x) : guard_(x.device()), stream_(c10::cuda::getCurrentCUDAStream().stream()) {}
  void* stream() const { return stream_; }

 private:
  c10::cuda::CUDAGuard guard_;
  void* stream_;
#else
  explicit OnDevice(const at::Tensor&) {}
  void* stream() const { return nullptr; }
#endif
};
#else
inline constexpr bool kHasDevice = false;
#endif

}  // namespace advnas
