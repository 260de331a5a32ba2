#include "conv3x3.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace advnas::cuda {
namespace {

bool asked_for() {
  const char* const value = std::getenv("ADVNAS_CUDA_CONV");
  const std::string choice = value != nullptr ? value : "library";
  TORCH_CHECK_VALUE(choice == "own" || choice == "library", "advnas_ext: ADVNAS_CUDA_CONV must be own or library, got ", choice,
                    "; unset it for the library's convolutions");
  return choice == "own";
}

std::atomic<bool>& setting() {
  static std::atomic<bool> own{asked_for()};
  return own;
}

}  // namespace

bool uses_own_conv3x3() { return setting(); }
void use_own_conv3x3(bool own) { setting() = own; }

bool allows_tf32() {
  try {
    return at::globalContext().allowTF32CuDNN();
  } catch (const c10::Error&) {
    return false;  // convolutions and recurrent networks were told different things: the library knows which
  }
}

}  // namespace advnas::cuda
