// The checker of kernels that were compiled with -fsanitize=thread: the hooks that g++ calls at every load and store. It must not
// be instrumented itself. The rules of order are in shadow.h.
#include <sys/mman.h>

#include <bit>
#include <memory>

#include "program.h"
#include "shadow.h"
#include "shim.h"

namespace cuda_shim {
namespace {

constexpr ptrdiff_t kRedzone = 64;
constexpr size_t kPage = 4096, kArena = size_t(256) << 30;
enum class Access { kRead, kWrite, kAtomic };

class MemoryChecker : public Checker {
 public:
  MemoryChecker() {
    void* memory = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory", "for the address range of the buffers");
    arena_ = static_cast<char*>(memory);
    used_ = kPage;
    page_owner_.assign(1, nullptr);
    checker = this;
  }

  // A buffer starts on a page of its own. The page before it, and the rest of its last page, belong to nobody; addresses are not
  // used again.
  void* allocate(size_t bytes, const char* name) override {
    const size_t pages = bytes / kPage + 1;
    if (used_ + (pages + 1) * kPage > kArena) fail("no memory", std::to_string(bytes) + " bytes of device memory");
    char* base = arena_ + used_;
    mprotect(base, pages * kPage, PROT_READ | PROT_WRITE);
    std::memset(base, 0xff, bytes);
    buffers_.push_back(std::make_unique<Region>(base, bytes, name, false));
    page_owner_.resize(page_owner_.size() + pages, buffers_.back().get());
    page_owner_.push_back(nullptr);
    used_ += (pages + 1) * kPage;
    return base;
  }

  void release(void* pointer) override {
    if (!pointer) return;
    Region* region = in_arena(pointer) ? owner(pointer) : nullptr;
    if (!region || region->base != pointer || region->freed) fail("bad free", "not the start of a live buffer");
    region->freed = true;
    region->cells = {};
    region->sectors = {};
    madvise(pointer, (region->size / kPage + 1) * kPage, MADV_DONTNEED);
  }

  void host_write(void* to, size_t bytes) override {
    if (!in_arena(to)) return;
    each_host_cell(to, bytes, [](Cell& cell) { cell = written_by_host(cell, true); });
  }

  void host_copy(void* to, const void* from, size_t bytes) override {
    if (!in_arena(from)) return host_write(to, bytes);
    std::vector<bool> initialised;
    Region& source = host_region(from, bytes);
    const size_t first = size_t(static_cast<const char*>(from) - source.base);
    for (size_t i = 0; i < bytes; ++i) initialised.push_back(source.cells[(first + i) >> source.shift].initialised);
    if (!in_arena(to)) return;
    Region& region = host_region(to, bytes);
    const size_t offset = size_t(static_cast<char*>(to) - region.base);
    if (std::adjacent_find(initialised.begin(), initialised.end(), std::not_equal_to<>()) != initialised.end()) {
      region.split_for(1, 1);  // bytes of both kinds
    }
    region.split_for(offset, bytes);
    for (size_t i = 0; i < bytes; ++i) {
      Cell& cell = region.cells[(offset + i) >> region.shift];
      cell = written_by_host(cell, initialised[i]);
    }
  }

  void begin_launch(const void* arguments, size_t arguments_bytes, unsigned char* shared, size_t shared_bytes) override {
    if (constant_.empty()) find_program();
    const auto low = reinterpret_cast<uintptr_t>(arguments);
    arguments_ = {low, low + arguments_bytes};
    dynamic_ = std::make_unique<Region>(shared, shared_bytes, "dynamic shared memory", true);
    ++launch_;
    read_ = written_ = {};
    history_.begin_launch();
  }

  void end_launch(Launch& launch) override {
    launch.read = read_;
    launch.written = written_;
  }

  void begin_block() override { history_.begin_block(); }
  void block_barrier() override { history_.block_barrier(); }
  void warp_barrier(unsigned first_thread, unsigned mask) override { history_.warp_barrier(first_thread, mask); }
  void fence() override { history_.fence(running.thread); }
  void atomic(const void* address, size_t bytes) override {
    access(address, bytes, Access::kAtomic, true, __builtin_return_address(0));
    history_.atomic(running.thread, reinterpret_cast<uintptr_t>(address));
  }

  void access(const void* pointer, size_t bytes, Access kind, bool aligned, const void* instruction) {
    instruction_ = instruction;
    kind_ = kind;
    pointer_ = static_cast<const char*>(pointer);
    bytes_ = bytes;
    if (in_arena(pointer)) return access_global(aligned);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (pointer_ >= running.stack_low && pointer_ + bytes <= running.stack_high) return;
    const auto dynamic = reinterpret_cast<uintptr_t>(dynamic_->base);
    if (address - (dynamic - kSharedGuard) < kSharedLimit + 2 * kSharedGuard) return access_shared(*dynamic_, aligned);
    if (kind == Access::kRead && is_built_in(address)) return;
    if (Region* variable = find_variable()) return access_shared(*variable, aligned);
    if (kind == Access::kRead && is_constant(address)) return;
    stop("host memory", "an address of no buffer, not shared, not on the thread's stack");
  }

 private:
  static Cell written_by_host(Cell cell, bool initialised) {
    Cell fresh;
    fresh.read_launch = cell.read_launch;
    fresh.write_launch = cell.write_launch;
    fresh.initialised = initialised;
    return fresh;
  }

  bool in_arena(const void* pointer) const { return size_t(static_cast<const char*>(pointer) - arena_) < used_; }
  Region* owner(const void* pointer) const { return page_owner_[size_t(static_cast<const char*>(pointer) - arena_) / kPage]; }

  Region& host_region(const void* pointer, size_t bytes) {
    Region* region = owner(pointer);
    if (!region || region->freed || size_t(static_cast<const char*>(pointer) - region->base) + bytes > region->size) {
      fail("copy out of bounds", std::to_string(bytes) + " bytes" + (region ? ", buffer '" + region->name + "'" : ""));
    }
    return *region;
  }

  template <class F>
  void each_host_cell(const void* pointer, size_t bytes, F f) {
    Region& region = host_region(pointer, bytes);
    const size_t offset = size_t(static_cast<const char*>(pointer) - region.base);
    region.split_for(offset, bytes);
    for (size_t i = offset >> region.shift; i < (offset + bytes) >> region.shift; ++i) f(region.cells[i]);
  }

  void find_program() {
    constant_ = constant_ranges();
    for (const Variable& variable : shared_variables()) {
      variables_.push_back(std::make_unique<Region>(variable.address, variable.size, variable.name, true));
    }
  }

  // The __shared__ variable nearest to the access, if it is near at all.
  Region* find_variable() const {
    const auto after = std::upper_bound(variables_.begin(), variables_.end(), pointer_,
                                        [](const char* p, const std::unique_ptr<Region>& r) { return p < r->base; });
    Region* nearest = nullptr;
    if (after != variables_.begin()) nearest = std::prev(after)->get();
    const bool before_next = after != variables_.end() && (*after)->base - pointer_ <= kRedzone;
    if (nearest && pointer_ < nearest->base + nearest->size + kRedzone) {
      if (!before_next || pointer_ < nearest->base + nearest->size + kRedzone / 2) return nearest;
    }
    return before_next ? after->get() : nullptr;
  }

  // Kernel arguments too.
  bool is_built_in(uintptr_t address) const {
    const auto is_in = [=](const auto& object) { return address - reinterpret_cast<uintptr_t>(&object) < sizeof(object); };
    return arguments_.has(address) || is_in(threadIdx) || is_in(blockIdx) || is_in(blockDim) || is_in(gridDim) || is_in(running);
  }

  bool is_constant(uintptr_t address) const {
    return std::any_of(constant_.begin(), constant_.end(), [=](const Range& range) { return range.has(address); });
  }

  [[noreturn]] void stop(const char* kind, const std::string& detail) {
    const char* verb = kind_ == Access::kRead ? "read" : kind_ == Access::kWrite ? "write" : "atomic";
    const std::string line = line_of(instruction_);
    fail(kind, verb + (" of " + std::to_string(bytes_)) + " bytes, " + detail + (line.empty() ? "" : ", " + line));
  }

  std::string place_in(const Region& region) const {
    return "'" + region.name + "' + " + std::to_string(pointer_ - region.base) + " (size " + std::to_string(region.size) + ")";
  }

  [[noreturn]] void stop_outside() {
    const Region* nearest = owner(pointer_);
    if (!nearest) {  // a page between two buffers
      const size_t page = size_t(pointer_ - arena_) / kPage;
      const Region* before = page > 0 ? page_owner_[page - 1] : nullptr;
      const Region* after = page + 1 < page_owner_.size() ? page_owner_[page + 1] : nullptr;
      nearest = !after || (before && pointer_ - (before->base + before->size) < after->base - pointer_) ? before : after;
    }
    stop(nearest && nearest->freed ? "use after free" : "global out of bounds", nearest ? place_in(*nearest) : "no buffer");
  }

  void access_global(bool aligned) {
    Region* region = owner(pointer_);
    if (!region || region->freed || size_t(pointer_ - region->base) + bytes_ > region->size) stop_outside();
    check_alignment(*region, aligned);
    const size_t offset = size_t(pointer_ - region->base);
    const uint32_t block = history_.block_start;
    for (size_t i = offset / 32; i <= (offset + bytes_ - 1) / 32; ++i) {
      Sector& sector = region->sectors[i];
      if (kind_ != Access::kWrite && std::exchange(sector.read_block, block) != block) read_.sectors += 32;
      if (kind_ != Access::kRead && std::exchange(sector.write_block, block) != block) written_.sectors += 32;
    }
    if (kind_ != Access::kWrite) read_.requested += bytes_;
    if (kind_ != Access::kRead) written_.requested += bytes_;
    check_cells(*region);
  }

  void access_shared(Region& region, bool aligned) {
    if (pointer_ < region.base || size_t(pointer_ - region.base) + bytes_ > region.size) {
      stop("shared out of bounds", place_in(region));
    }
    check_alignment(region, aligned);
    check_cells(region);
  }

  // 16 bytes at once are a vector to nvcc as well, so long as the type is aligned to 16; a struct of two 8-byte members is
  // reported where it need not be.
  void check_alignment(const Region& region, bool aligned) {
    if (aligned && reinterpret_cast<uintptr_t>(pointer_) % bytes_ != 0) stop("misaligned access", place_in(region));
  }

  void check_cells(Region& region) {
    const size_t offset = size_t(pointer_ - region.base);
    region.split_for(offset, bytes_);
    const size_t width = size_t(1) << region.shift;
    for (size_t i = offset >> region.shift; i < (offset + bytes_) >> region.shift; ++i) {
      Cell& cell = region.cells[i];
      if (kind_ != Access::kWrite) {
        if (!(region.shared ? cell.write_time >= history_.block_start : cell.initialised)) {
          stop(region.shared ? "uninitialised shared read" : "uninitialised global read", place_in(region));
        }
        if (!region.shared && std::exchange(cell.read_launch, launch_) != launch_) read_.unique += width;
      }
      if (kind_ != Access::kRead && !region.shared && std::exchange(cell.write_launch, launch_) != launch_) {
        written_.unique += width;
      }
      check_order(region, cell);
    }
  }

  // Stops unless the earlier access is ordered before this one.
  void check_pair(const Region& region, uint32_t time, unsigned thread, const char* what) {
    if (time < (region.shared ? history_.block_start : history_.launch_start)) return;
    const bool same_block = time >= history_.block_start;
    if (same_block ? history_.ordered_in_block(time, thread, running.thread)
                   : history_.ordered_between_blocks(time, thread, running.thread)) {
      return;
    }
    const std::string who = " by thread " + std::to_string(thread);
    stop(same_block ? "race in a block" : "race between blocks",
         place_in(region) + ", after a " + what + who +
             (same_block ? "" : " of block " + std::to_string(history_.block_number(time)) + " (in launch order)"));
  }

  void check_order(const Region& region, Cell& cell) {
    const auto me = uint16_t(running.thread);
    if (!(kind_ == Access::kAtomic && cell.write_atomic)) {
      check_pair(region, cell.write_time, cell.write_thread, cell.write_atomic ? "atomic" : "write");
    }
    if (kind_ == Access::kRead) return remember_read(region, cell, me);
    for (int k = 0; k < 2; ++k) check_pair(region, cell.read_time[k], cell.read_thread[k], "read");
    cell.write_time = history_.now;
    cell.write_thread = me;
    cell.write_atomic = kind_ == Access::kAtomic;
    cell.initialised = true;
    cell.read_time[0] = cell.read_time[1] = 0;
  }

  // Two readers stand for all: of different warps, or else of different lanes, so that any writer meets another than itself.
  void remember_read(const Region& region, Cell& cell, uint16_t me) {
    const uint32_t start = history_.block_start;
    int slot = -1;
    for (int k = 1; k >= 0; --k) {
      const uint32_t time = cell.read_time[k];
      const unsigned thread = cell.read_thread[k];
      const bool past = time < (region.shared ? start : history_.launch_start);
      if (past ||
          (time >= start ? history_.ordered_in_block(time, thread, me) : history_.ordered_between_blocks(time, thread, me))) {
        slot = k;
      }
    }
    if (slot < 0 && cell.read_time[0] >= start && cell.read_time[1] >= start &&
        cell.read_thread[0] / 32 == cell.read_thread[1] / 32 && me / 32 != cell.read_thread[0] / 32) {
      slot = 1;
    }
    if (slot < 0) return;
    cell.read_time[slot] = history_.now;
    cell.read_thread[slot] = me;
  }

  char* arena_ = nullptr;
  size_t used_ = 0;
  std::vector<std::unique_ptr<Region>> buffers_, variables_;
  std::vector<Region*> page_owner_;
  std::unique_ptr<Region> dynamic_;
  std::vector<Range> constant_;
  Range arguments_{0, 0};
  History history_;
  uint32_t launch_ = 0;
  Traffic read_, written_;

  // The access under check.
  const char* pointer_ = nullptr;
  size_t bytes_ = 0;
  Access kind_ = Access::kRead;
  const void* instruction_ = nullptr;
};

// Never destroyed: static buffers of a test may be released later.
MemoryChecker& instance = *new MemoryChecker;

}  // namespace
}  // namespace cuda_shim

#define CUDA_SHIM_HOOK(name, bytes, kind, aligned)                                                         \
  extern "C" void name(const void* p) {                                                                    \
    if (cuda_shim::running.active) {                                                                       \
      cuda_shim::running.active = false; /* what the checker itself does is not checked */                 \
      cuda_shim::instance.access(p, bytes, cuda_shim::Access::kind, aligned, __builtin_return_address(0)); \
      cuda_shim::running.active = true;                                                                    \
    }                                                                                                      \
  }
#define CUDA_SHIM_HOOKS(bytes)                                      \
  CUDA_SHIM_HOOK(__tsan_read##bytes, bytes, kRead, true)            \
  CUDA_SHIM_HOOK(__tsan_write##bytes, bytes, kWrite, true)          \
  CUDA_SHIM_HOOK(__tsan_unaligned_read##bytes, bytes, kRead, false) \
  CUDA_SHIM_HOOK(__tsan_unaligned_write##bytes, bytes, kWrite, false)
CUDA_SHIM_HOOKS(1)
CUDA_SHIM_HOOKS(2)
CUDA_SHIM_HOOKS(4)
CUDA_SHIM_HOOKS(8)
CUDA_SHIM_HOOKS(16)

#define CUDA_SHIM_RANGE(name, kind)                                                                      \
  extern "C" void name(const void* p, size_t bytes) {                                                    \
    if (cuda_shim::running.active && bytes > 0) {                                                        \
      cuda_shim::running.active = false;                                                                 \
      cuda_shim::instance.access(p, bytes, cuda_shim::Access::kind, false, __builtin_return_address(0)); \
      cuda_shim::running.active = true;                                                                  \
    }                                                                                                    \
  }
CUDA_SHIM_RANGE(__tsan_read_range, kRead)
CUDA_SHIM_RANGE(__tsan_write_range, kWrite)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
// The guard of a static variable: g++ gives one to arrays of __half, though there is nothing to construct.
extern "C" unsigned char __tsan_atomic8_load(const unsigned char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

// -fsanitize=alignment: g++ takes a vector apart before the hooks see it, but asks this about the vector.
struct TypeMismatch {
  struct {
    const char* file;
    uint32_t line, column;
  } location;
  const void* type;
  unsigned char log_alignment, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
  if (!cuda_shim::running.active || pointer % (uintptr_t(1) << data->log_alignment) == 0) return;
  cuda_shim::running.active = false;
  cuda_shim::fail("misaligned access", "the type needs " + std::to_string(1 << data->log_alignment) + " bytes, " +
                                           std::string(data->location.file) + ":" + std::to_string(data->location.line));
}
