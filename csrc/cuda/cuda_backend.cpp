#include "cuda_backend.h"

#include "cuda_pass.h"

namespace advnas::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  std::shared_ptr<Backend> clone() const override { return std::make_shared<CudaBackend>(*this); }
  void forward(Pass& pass) override { run_forward(pass, state_); }
  Gradients backward(Pass& pass, const Tensor& dy, const Wanted& wanted) override {
    return run_backward(pass, state_, dy, wanted);
  }
  void forget(int64_t node) override { state_.relus[node] = Tensor(); }
  std::vector<Tensor>& kept() override { return state_.relus; }

 private:
  CudaState state_;
};

}  // namespace

std::shared_ptr<Backend> make_backend() { return std::make_shared<CudaBackend>(); }

}  // namespace advnas::cuda
