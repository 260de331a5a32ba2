// The core of the shim: launches, barriers, device memory, the log of launches. cuda_runtime.h says what it is for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "work.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_shim {

// Shuffles the order in which the threads of a block run between two barriers.
inline unsigned seed = 1;
// What cudaDeviceGetAttribute says. Few, so that loops over a grid of this size go round more than once in small tests.
inline int multiprocessors = 4;

inline constexpr size_t kSharedDefault = 48 << 10, kSharedLimit = 227 << 10;
// Unused bytes before and after the dynamic shared memory.
inline constexpr size_t kSharedGuard = 4096;

// Bytes in global memory. Only the checked build counts them.
struct Traffic {
  uint64_t requested = 0;  // every access of every thread
  uint64_t unique = 0;     // distinct bytes over the launch: what perfect caches would leave
  uint64_t sectors = 0;    // distinct sectors of 32 bytes in a block, summed over the blocks: what L1 and coalescing leave
};

struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared_bytes = 0;
  Work work;
  Traffic read, written;
};

// What was launched since the last call of clear_launches.
const std::vector<Launch>& launches();
void clear_launches();
// Off: launches are written down and not run.
inline bool runs_kernels = true;

// Where a barrier stands.
struct Place {
  const char* file;
  int line;
  bool operator==(const Place& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
};
#define CUDA_SHIM_HERE cuda_shim::Place place = {__builtin_FILE(), __builtin_LINE()}

// One line on stderr that names kernel, block, thread and seed; then exit code 3.
[[noreturn]] void fail(const char* kind, const std::string& detail);
[[noreturn]] void fail(const char* kind, const char* detail, Place place);  // for kernels: makes no string there

// Returns how many threads of the block came with vote.
int wait_block(bool vote, Place place);

// Waits until every lane of the mask has come to the same place. The last to come has `collective` (if any) called once for all:
// arguments[lane] is what the lane brought, null for lanes outside the mask. Only __syncwarp orders memory, as in CUDA.
using Collective = void(void* const* arguments);
void wait_warp(unsigned mask, bool orders_memory, Collective* collective, void* argument, Place place);

void fence();
// Called before an atomic operation, which is then done by code that is not checked.
void before_atomic(const void* address, size_t bytes);
unsigned char* dynamic_shared();

void launch(Launch entry, const void* function, void (*body)(const void*), const void* arguments, size_t arguments_bytes);

template <class... Parameters>
auto launcher(void (*kernel)(Parameters...), const char* name, dim3 grid, dim3 block, size_t shared_bytes, const void*) {
  return [=](Parameters... values) {
    using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
    const Work work = work_of(grid.x, grid.y, grid.z, std::as_const(values)...);
    const Call call(kernel, std::tuple<Parameters...>(std::move(values)...));
    const auto body = [](const void* p) {
      const Call& call = *static_cast<const Call*>(p);
      std::apply(call.first, call.second);
    };
    launch({name, grid, block, shared_bytes, work, {}, {}}, reinterpret_cast<const void*>(kernel), body, &call, sizeof(call));
  };
}

// Device memory, exactly as long as asked for. Its bytes are uninitialised until written.
void* allocate(size_t bytes, const char* name);
void release(void* pointer);
void copy(void* to, const void* from, size_t bytes);
void set(void* to, int value, size_t bytes);

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size, const char* name = "buffer")
      : size_(size), data_(static_cast<T*>(allocate(size * sizeof(T), name))) {}
  explicit Buffer(const std::vector<T>& values, const char* name = "buffer") : Buffer(values.size(), name) { fill(values); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  void fill(const std::vector<T>& values) { copy(data_, values.data(), values.size() * sizeof(T)); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    std::memcpy(static_cast<void*>(values.data()), data_, size_ * sizeof(T));
    return values;
  }

 private:
  size_t size_;
  T* data_;
};

// What checker.cpp does at the events of a launch. Without checker.cpp in the program nothing is checked but barriers.
struct Checker {
  virtual ~Checker() = default;
  virtual void* allocate(size_t bytes, const char* name) = 0;
  virtual void release(void* pointer) = 0;
  virtual void host_write(void* to, size_t bytes) = 0;
  virtual void host_copy(void* to, const void* from, size_t bytes) = 0;
  virtual void begin_launch(const void* arguments, size_t arguments_bytes, unsigned char* shared, size_t shared_bytes) = 0;
  virtual void end_launch(Launch& launch) = 0;
  virtual void begin_block() = 0;
  virtual void block_barrier() = 0;
  virtual void warp_barrier(unsigned first_thread, unsigned mask) = 0;
  virtual void fence() = 0;
  virtual void atomic(const void* address, size_t bytes) = 0;
};
inline Checker* checker = nullptr;

// The thread that runs: its number in the block, its stack. active is false while the host or the scheduler runs.
struct Running {
  bool active = false;
  unsigned thread = 0;
  const char *stack_low = nullptr, *stack_high = nullptr;
};
inline Running running;

}  // namespace cuda_shim
