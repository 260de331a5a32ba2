// The scheduler: blocks one after another, the threads of a block as fibers. It must not be instrumented.
// _longjmp switches between stacks; the fortified version of glibc takes that for an error.
#undef _FORTIFY_SOURCE
#include "shim.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>

#include "cuda_runtime.h"
#include "program.h"

namespace cuda_shim {
namespace {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10, kPage = 4096;

enum class State { kReady, kBlockBarrier, kWarpBarrier, kDone };

// Made once and kept: a fiber that has ended a thread waits for the next one.
struct Fiber {
  jmp_buf context;
  bool started = false;
  State state = State::kDone;
  char* stack = nullptr;
  Place place{"", 0};
  bool vote = false;
  unsigned mask = 0;
  bool orders_memory = false;
  Collective* collective = nullptr;
  void* argument = nullptr;
};

Fiber fibers[kMaxThreads];
jmp_buf scheduler;
ucontext_t new_fiber;
unsigned block_size;
int votes;
void (*body)(const void*);
const void* body_arguments;
const char* kernel_name = "host code";
std::vector<Launch> log_of_launches;
std::map<const void*, size_t> shared_allowed;
alignas(128) unsigned char shared_storage[kSharedLimit + 2 * kSharedGuard];
unsigned char* const shared_memory = shared_storage + kSharedGuard;

std::string text(Place place) {
  const char* name = std::strrchr(place.file, '/');
  return std::string(name ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

void set_running(unsigned thread) {
  running.thread = thread;
  running.stack_low = fibers[thread].stack;
  running.stack_high = fibers[thread].stack + kStack;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y));
}

[[noreturn]] void fail_at(unsigned thread, const char* kind, const std::string& detail) {
  set_running(thread);
  fail(kind, detail);
}

void to_scheduler() {
  if (_setjmp(fibers[running.thread].context) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    body(body_arguments);
    running.active = false;
    fibers[running.thread].state = State::kDone;
    to_scheduler();
  }
}

void start(Fiber& fiber) {
  // A page without access below each stack: an overflow stops the program instead of spoiling a neighbour.
  char* memory = static_cast<char*>(
      mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) fail("no memory", "for the stack of a thread");
  fiber.stack = memory + kPage;
}

__attribute__((noinline)) void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) == 0) {
    running.active = true;
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    getcontext(&new_fiber);
    new_fiber.uc_stack.ss_sp = fiber.stack;
    new_fiber.uc_stack.ss_size = kStack;
    new_fiber.uc_link = nullptr;
    makecontext(&new_fiber, fiber_main, 0);
    setcontext(&new_fiber);
  }
  running.active = false;
}

bool open_block() {
  unsigned waiting = 0, arrived = 0;
  for (unsigned i = 0; i < block_size; ++i) {
    if (fibers[i].state == State::kDone) continue;
    if (fibers[i].state != State::kBlockBarrier) return false;
    ++arrived;
    waiting = i;
  }
  if (arrived == 0) return false;
  votes = 0;
  for (unsigned i = 0; i < block_size; ++i) {
    if (fibers[i].state != State::kBlockBarrier) continue;
    if (!(fibers[i].place == fibers[waiting].place)) {
      fail_at(i, "divergent barrier", text(fibers[i].place) + ", other threads wait at " + text(fibers[waiting].place));
    }
    votes += fibers[i].vote;
    fibers[i].state = State::kReady;
  }
  if (checker) checker->block_barrier();
  return true;
}

bool same_barrier(const Fiber& a, const Fiber& b) {
  return b.state == State::kWarpBarrier && a.mask == b.mask && a.place == b.place && a.collective == b.collective;
}

bool open_warp(unsigned first) {
  bool opened = false;
  for (unsigned lane = 0; lane < kWarp && first + lane < block_size; ++lane) {
    const Fiber& one = fibers[first + lane];
    if (one.state != State::kWarpBarrier) continue;
    const unsigned mask = one.mask;
    bool complete = true;
    for (unsigned other = 0; other < kWarp && complete; ++other) {
      if (!(mask >> other & 1)) continue;
      if (first + other >= block_size || fibers[first + other].state == State::kDone) {
        fail_at(first + lane, "absent lane",
                text(one.place) + ": the mask names lane " + std::to_string(other) + ", which " +
                    (first + other >= block_size ? "does not exist" : "has ended"));
      }
      complete = same_barrier(one, fibers[first + other]);
    }
    if (!complete) continue;
    void* arguments[kWarp] = {};
    for (unsigned other = 0; other < kWarp; ++other) {
      if (!(mask >> other & 1)) continue;
      arguments[other] = fibers[first + other].argument;
      fibers[first + other].state = State::kReady;
    }
    if (one.collective) one.collective(arguments);
    if (checker && one.orders_memory) checker->warp_barrier(first, mask);
    opened = true;
  }
  return opened;
}

[[noreturn]] void report_deadlock() {
  for (unsigned i = 0; i < block_size; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.state != State::kWarpBarrier) continue;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      const Fiber& other = fibers[i / kWarp * kWarp + lane];
      if (!same_barrier(fiber, other)) {
        fail_at(i, "absent lane",
                text(fiber.place) + ": the mask names lane " + std::to_string(lane) + ", which waits at " + text(other.place));
      }
    }
  }
  for (unsigned i = 0; i < block_size; ++i) {
    if (fibers[i].state != State::kDone) fail_at(i, "a barrier never opens", text(fibers[i].place));
  }
  std::abort();
}

void run_block(size_t shared_bytes, std::vector<uint16_t>& order) {
  static const std::vector<Variable> variables = shared_variables();
  // All bits set: NaN in any float type.
  for (const Variable& variable : variables) std::memset(variable.address, 0xff, variable.size);
  std::memset(shared_memory, 0xff, shared_bytes);
  for (unsigned i = 0; i < block_size; ++i) {
    if (!fibers[i].stack) start(fibers[i]);
    fibers[i].state = State::kReady;
    order[i] = uint16_t(i);
  }
  if (checker) checker->begin_block();
  std::minstd_rand random(seed * 7919 + blockIdx.x + 31 * blockIdx.y + 1009 * blockIdx.z);
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool progress = false, alive = false;
    for (unsigned i : order) {
      if (fibers[i].state != State::kReady) continue;
      set_running(i);
      resume(i);
      progress = true;
      alive |= fibers[i].state != State::kDone;
    }
    for (unsigned warp = 0; warp < block_size; warp += kWarp) progress |= open_warp(warp);
    progress |= open_block();
    for (unsigned i = 0; i < block_size && !alive; ++i) alive = fibers[i].state != State::kDone;
    if (!alive) return;
    if (!progress) report_deadlock();
  }
}

std::string text(dim3 d) { return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")"; }

}  // namespace

const std::vector<Launch>& launches() { return log_of_launches; }
void clear_launches() { log_of_launches.clear(); }
unsigned char* dynamic_shared() { return shared_memory; }

void fail(const char* kind, const std::string& detail) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_shim: %s, block %s, thread %s: %s: %s (seed %u)\n", kernel_name, text(blockIdx).c_str(),
               text(threadIdx).c_str(), kind, detail.c_str(), seed);
  _exit(3);  // not std::exit: this may be the stack of a fiber
}

void fail(const char* kind, const char* detail, Place place) {
  running.active = false;
  fail(kind, text(place) + ": " + detail);
}

// From here on, functions that kernels call. running.active is off in them: the linker may keep instrumented copies of what they
// use of the standard library.
int wait_block(bool vote, Place place) {
  running.active = false;
  Fiber& fiber = fibers[running.thread];
  fiber.vote = vote;
  fiber.place = place;
  fiber.state = State::kBlockBarrier;
  to_scheduler();
  return votes;
}

void wait_warp(unsigned mask, bool orders_memory, Collective* collective, void* argument, Place place) {
  running.active = false;
  Fiber& fiber = fibers[running.thread];
  if (!(mask >> running.thread % kWarp & 1)) fail("lane outside its mask", text(place));
  fiber.mask = mask;
  fiber.orders_memory = orders_memory;
  fiber.collective = collective;
  fiber.argument = argument;
  fiber.place = place;
  fiber.state = State::kWarpBarrier;
  to_scheduler();
}

void fence() {
  running.active = false;
  if (checker) checker->fence();
  running.active = true;
}

void before_atomic(const void* address, size_t bytes) {
  running.active = false;
  if (checker) checker->atomic(address, bytes);
  running.active = true;
}

void launch(Launch entry, const void* function, void (*new_body)(const void*), const void* arguments, size_t arguments_bytes) {
  const dim3 grid = entry.grid, block = entry.block;
  const size_t shared_bytes = entry.shared_bytes;
  const std::string name = entry.kernel;
  kernel_name = name.c_str();
  blockIdx = threadIdx = dim3(0, 0, 0);
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const std::string sizes = "grid " + text(grid) + ", block " + text(block) + ", shared " + std::to_string(shared_bytes);
  const auto allowed = shared_allowed.find(function);
  if (threads == 0 || threads > kMaxThreads || block.z > 64) fail("invalid launch", sizes + ": 1 to 1024 threads a block");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("invalid launch", sizes + ": an empty grid");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) fail("invalid launch", sizes + ": grid too large");
  if (shared_bytes > (allowed == shared_allowed.end() ? kSharedDefault : allowed->second)) {
    fail("invalid launch", sizes + ": more shared memory than cudaFuncSetAttribute allowed");
  }
  if (runs_kernels) {
    gridDim = grid;
    blockDim = block;
    block_size = unsigned(threads);
    body = new_body;
    body_arguments = arguments;
    std::vector<uint16_t> order(block_size);
    if (checker) checker->begin_launch(arguments, arguments_bytes, dynamic_shared(), shared_bytes);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          run_block(shared_bytes, order);
        }
      }
    }
    if (checker) checker->end_launch(entry);
  }
  log_of_launches.push_back(std::move(entry));
  kernel_name = "host code";
}

cudaError_t allow_shared(const void* function, int bytes) {
  if (bytes < 0 || size_t(bytes) > kSharedLimit) return cudaErrorInvalidValue;
  shared_allowed[function] = size_t(bytes);
  return cudaSuccess;
}

void* allocate(size_t bytes, const char* name) {
  if (checker) return checker->allocate(bytes, name);
  void* memory = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
  if (!memory) fail("no memory", std::to_string(bytes) + " bytes of device memory");
  std::memset(memory, 0xff, bytes);
  return memory;
}

void release(void* pointer) {
  if (checker) return checker->release(pointer);
  std::free(pointer);
}

void copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  if (checker) checker->host_copy(to, from, bytes);
  std::memmove(to, from, bytes);
}

void set(void* to, int value, size_t bytes) {
  if (bytes == 0) return;
  if (checker) checker->host_write(to, bytes);
  std::memset(to, value, bytes);
}

}  // namespace cuda_shim
