// The passes of pass.h on the host.
#pragma once

#include <memory>

#include "../pass.h"

namespace advnas {

std::shared_ptr<Backend> make_cpu_backend();

}  // namespace advnas
