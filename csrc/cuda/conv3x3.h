// Whether kernels of our own run 3x3 convolutions in place of the library's.
#pragma once

namespace advnas::cuda {

// At first what the environment variable ADVNAS_CUDA_CONV says, which is read once: `own`, or `library` as without it.
bool uses_own_conv3x3();
void use_own_conv3x3(bool own);

// Whether float32 convolutions may round to TF32: torch.backends.cudnn.allow_tf32.
bool allows_tf32();

}  // namespace advnas::cuda
