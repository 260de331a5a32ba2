// at::parallel_for on torch's own OpenMP runtime, whatever the compiler.
//
// That one is a template with `#pragma omp parallel`, so the compiler says which runtime runs it: clang's code needs LLVM's, a
// second one with threads of its own beside GNU's, which torch has loaded on Linux; Apple's clang has no OpenMP at all.
// GOMP_parallel, which GCC calls there, is in both runtimes.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#if AT_PARALLEL_OPENMP
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
int omp_get_num_threads();
int omp_get_thread_num();
}
#endif

namespace advnas {

// Calls body(begin, end) for parts of 0 .. items, one a thread, equal but for the last, in as many threads as have `grain` items.
template <class Body>
void parallel_for(int64_t items, int64_t grain, const Body& body) {
#if AT_PARALLEL_OPENMP
  struct Region {
    const Body& body;
    int64_t items, grain;
    std::atomic_flag failed;
    std::exception_ptr error;  // of the first thread that fails: none may leave a region

    void run() {
      const int64_t threads = std::min<int64_t>(omp_get_num_threads(), at::divup(items, grain));
      const int64_t part = at::divup(items, threads), begin = omp_get_thread_num() * part;
      if (begin >= items) return;
      try {
        body(begin, std::min(items, begin + part));
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    }
  };
  at::internal::lazy_init_num_threads();
  if (items <= grain || at::get_num_threads() == 1 || at::in_parallel_region()) {
    if (items > 0) body(0, items);
    return;
  }
  Region region{body, items, grain, {}, {}};
  GOMP_parallel([](void* data) { static_cast<Region*>(data)->run(); }, &region, 0, 0);
  if (region.error) std::rethrow_exception(region.error);
#else
  at::parallel_for(0, items, grain, body);
#endif
}

}  // namespace advnas
