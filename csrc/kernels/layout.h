// From images channel by channel, [batch, channels, pixels], to images pixel by pixel, [batch, pixels, channels].
#pragma once

#include "channels_last.h"

namespace advnas::cuda {

// Writes x as it is, its ReLU, or both; a null one is left out.
template <class T>
void to_channels_last(const T* x, T* y, T* relu, const Images& shape, void* stream);

}  // namespace advnas::cuda
