#include "cpu_backend.h"

#include "cpu_pass.h"

namespace advnas {
namespace {

class CpuBackend final : public Backend {
 public:
  std::shared_ptr<Backend> clone() const override { return std::make_shared<CpuBackend>(*this); }
  void forward(Pass& pass) override { run_cpu_forward(pass, state_); }
  Gradients backward(Pass& pass, const at::Tensor& dy, const Wanted& wanted) override {
    return run_cpu_backward(pass, state_, dy, wanted);
  }
  bool recomputes(int64_t node) const override { return state_.recomputed[node]; }

 private:
  CpuState state_;
};

}  // namespace

std::shared_ptr<Backend> make_cpu_backend() { return std::make_shared<CpuBackend>(); }

}  // namespace advnas
