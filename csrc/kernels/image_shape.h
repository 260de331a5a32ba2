// The size of one image on the host, in channels-last order: [height * width, channels].
#pragma once

#include <cstdint>

namespace advnas {

struct ImageShape {
  int64_t height, width, channels;
};

}  // namespace advnas
