// The passes of pass.h on a GPU: between the convolutions one launch a node each way, with
// kernels/{node,norm,pointwise,layout}.h. 1x1 convolutions are our own where their channels fit; the others are
// at::convolution's. Nothing crosses to the host: gates and their gradients, batch norm's coefficients and all sums stay in
// device memory.
//
// Written against the kernels' entry points and ATen only, so that tests can run it on the host (device.h).
#pragma once

#include <memory>

#include "../pass.h"

namespace advnas::cuda {

std::shared_ptr<Backend> make_backend();

}  // namespace advnas::cuda
