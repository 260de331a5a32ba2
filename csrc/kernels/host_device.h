#pragma once

// On the host a formula is always inlined: a copy compiled for AVX2 must not be the one that the linker keeps for everybody.
#ifdef __CUDACC__
#define ADVNAS_HOST_DEVICE __host__ __device__
#else
#define ADVNAS_HOST_DEVICE __attribute__((always_inline))
#endif
