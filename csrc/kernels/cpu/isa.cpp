#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace advnas::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*runs_here)();
  void (*fill)(Kernels<float>*, Kernels<double>*);
};

}  // namespace

#define ADVNAS_DECLARE_FAMILY(family) \
  template <class T>                  \
  void fill_##family(Kernels<T>* table);
#define ADVNAS_FILL_FAMILY(family) \
  fill_##family(float32);          \
  fill_##family(float64);
#define ADVNAS_DECLARE_ISA(isa)                                                                                      \
  namespace isa {                                                                                                    \
  ADVNAS_KERNEL_FAMILIES(ADVNAS_DECLARE_FAMILY)                                                                      \
  static void fill(Kernels<float>* float32, Kernels<double>* float64) { ADVNAS_KERNEL_FAMILIES(ADVNAS_FILL_FAMILY) } \
  }

// The set of the compiler's default flags, which every CPU of the architecture runs; on aarch64 those include NEON.
#ifdef __aarch64__
ADVNAS_DECLARE_ISA(neon)
#else
ADVNAS_DECLARE_ISA(baseline)
#endif
#ifdef __x86_64__
ADVNAS_DECLARE_ISA(avx2)
ADVNAS_DECLARE_ISA(avx512)
#endif

namespace {

// Best first.
constexpr Isa kSets[] = {
#ifdef __x86_64__
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     avx512::fill},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, avx2::fill},
#endif
#ifdef __aarch64__
    {"neon", [] { return true; }, neon::fill},
#else
    {"baseline", [] { return true; }, baseline::fill},
#endif
};

struct Chosen {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
};

Chosen choose() {
  const char* wanted = std::getenv("ADVNAS_ISA");
  for (const Isa& isa : kSets) {
    if (wanted != nullptr && std::string(wanted) != isa.name) continue;
    if (!isa.runs_here()) continue;
    Chosen chosen{isa.name, {}, {}};
    isa.fill(&chosen.float32, &chosen.float64);
    return chosen;
  }
  throw std::invalid_argument("ADVNAS_ISA must be one of those compiled (" + std::string(isa_names()) +
                              ") that this CPU runs, got \"" + std::string(wanted) + "\"; unset it to use the best");
}

const Chosen& chosen() {
  static const Chosen once = choose();
  return once;
}

}  // namespace

const char* isa_name() { return chosen().name; }

const char* isa_names() {
  static const std::string names = [] {
    std::string all;
    for (const Isa& isa : kSets) all += (all.empty() ? "" : " ") + std::string(isa.name);
    return all;
  }();
  return names.c_str();
}

template <>
const Kernels<float>& kernels<float>() {
  return chosen().float32;
}
template <>
const Kernels<double>& kernels<double>() {
  return chosen().float64;
}

}  // namespace advnas::cpu
