// Sizes of a batch of images in channels-last order, [batch, height, width, channels], as the CUDA kernels take them.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advnas::cuda {

struct Images {
  int batch, height, width, channels;

  ADVNAS_HOST_DEVICE int64_t pixels() const { return int64_t(batch) * height * width; }
  ADVNAS_HOST_DEVICE int64_t size() const { return pixels() * channels; }
};

}  // namespace advnas::cuda
