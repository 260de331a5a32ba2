// Activations and their gradients come from buffers that outlive the step that fills them: asking the system for fresh pages,
// megabytes a time, costs as much as the arithmetic on them.
#pragma once

#include <ATen/core/Tensor.h>

namespace advnas {

// An uninitialised tensor on the host, dense in channels_last order where it has four dimensions. Its memory is taken up again by
// a later tensor of the same size. What is kept unused never exceeds what was in use at one time.
at::Tensor empty_buffer(at::IntArrayRef sizes, at::ScalarType type);

// The same with the sizes, the type and, if it has no gaps, the layout of `tensor`.
at::Tensor empty_buffer_like(const at::Tensor& tensor);

}  // namespace advnas
