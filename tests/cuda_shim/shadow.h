// What the checker knows about memory (Cell, Region) and about order (History).
//
// Time counts the events that order something: starts of blocks, barriers, fences, atomics. An access is (time, thread), so an
// earlier time than that of a barrier means before it. Two accesses are ordered if
// - both are of one thread; or a barrier of the block lies between them; or, in one warp, a __syncwarp of both lanes does;
// - they are of two blocks of one launch, the first "released" it and the second "acquired" it (the pattern of the last block):
//   some thread fenced (__threadfence) after the access, its own or one before its last block barrier; then, later in the same
//   thread or after a barrier, the first block did an atomic; then the second block did an atomic on the same address; then,
//   later in the same thread or after a barrier, comes the second access.
// Two accesses of one place, at least one a write, that are not ordered, are a race, unless both are atomic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace cuda_shim {

// The smallest part that was accessed alone so far: 4, 2 or 1 bytes of a region. A time of 0 is never.
struct Cell {
  uint32_t write_time = 0, read_time[2] = {};
  uint32_t read_launch = 0, write_launch = 0;  // numbers of the last launches that did
  uint16_t write_thread = 0, read_thread[2] = {};
  bool initialised = false, write_atomic = false;
};

struct Sector {
  uint32_t read_block = 0, write_block = 0;  // the starts of the last blocks that did
};

// A buffer in global memory, a __shared__ variable, or the dynamic shared memory of a launch.
struct Region {
  const char* base = nullptr;
  size_t size = 0;
  std::string name;
  bool shared = false, freed = false;
  unsigned shift = 2;  // a cell has 1 << shift bytes
  std::vector<Cell> cells;
  std::vector<Sector> sectors;

  Region(const void* base, size_t size, std::string name, bool shared)
      : base(static_cast<const char*>(base)), size(size), name(std::move(name)), shared(shared) {
    while (size % (size_t(1) << shift) != 0) --shift;
    cells.resize(size >> shift);
    if (!shared) sectors.resize((size + 31) / 32);
  }

  // Splits the cells if the range [offset, offset + bytes) needs that.
  void split_for(size_t offset, size_t bytes) {
    unsigned finer = shift;
    while ((offset | bytes) % (size_t(1) << finer) != 0) --finer;
    if (finer == shift) return;
    std::vector<Cell> split(size >> finer);
    for (size_t i = 0; i < split.size(); ++i) split[i] = cells[i >> (shift - finer)];
    cells = std::move(split);
    shift = finer;
  }
};

// A fence or an atomic: who, when, and the last barrier of the block before.
struct Event {
  unsigned thread;
  uint32_t time, barrier;
};

struct BlockHistory {
  uint32_t start = 0;
  std::vector<Event> fences;
  struct Atomics {
    uint32_t barrier = 0;                          // the last barrier before any of them
    std::unordered_map<unsigned, uint32_t> last;   // the time of the last one of each thread
    std::unordered_map<unsigned, Event> acquired;  // the first one of each thread
  };
  std::unordered_map<uintptr_t, Atomics> atomics;  // by address

  // Whether an access was released by an atomic on this address.
  bool released(uint32_t time, unsigned thread, uintptr_t address) const {
    const auto found = atomics.find(address);
    if (found == atomics.end()) return false;
    for (const Event& fence : fences) {
      if (!(time < fence.barrier || (fence.thread == thread && time < fence.time))) continue;
      if (fence.time < found->second.barrier) return true;
      const auto last = found->second.last.find(fence.thread);
      if (last != found->second.last.end() && fence.time < last->second) return true;
    }
    return false;
  }
};

class History {
 public:
  uint32_t now = 1, launch_start = 1, block_start = 1;

  void begin_launch() {
    blocks_.clear();
    launch_start = ++now;
  }
  void begin_block() {
    blocks_.emplace_back();
    blocks_.back().start = block_start = barrier_ = ++now;
  }
  void block_barrier() { barrier_ = ++now; }

  void warp_barrier(unsigned first, unsigned mask) {
    ++now;
    uint32_t joined[32] = {};
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (unsigned k = 0; k < 32; ++k) joined[k] = std::max(joined[k], seen_[first + lane][k]);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1) joined[lane] = now;
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1) std::copy(joined, joined + 32, seen_[first + lane]);
    }
  }

  void fence(unsigned thread) {
    ++now;
    blocks_.back().fences.push_back({thread, now, barrier_});
  }

  void atomic(unsigned thread, uintptr_t address) {
    ++now;
    BlockHistory::Atomics& atomics = blocks_.back().atomics[address];
    atomics.barrier = barrier_;
    atomics.last[thread] = now;
    atomics.acquired.insert({thread, {thread, now, barrier_}});
  }

  bool ordered_in_block(uint32_t time, unsigned thread, unsigned me) const {
    return thread == me || time < barrier_ || (thread / 32 == me / 32 && time < seen_[me][thread % 32]);
  }

  // An access of an earlier block of this launch, before what `me` does now?
  bool ordered_between_blocks(uint32_t time, unsigned thread, unsigned me) const {
    const BlockHistory& other = *block_of(time);
    for (const auto& [address, atomics] : blocks_.back().atomics) {
      if (!other.released(time, thread, address)) continue;
      for (const auto& [acquirer, event] : atomics.acquired) {
        if (acquirer == me || ordered_in_block(event.time, acquirer, me)) return true;
      }
    }
    return false;
  }

  // The number of the block, in the order of the run, that did something at this time.
  size_t block_number(uint32_t time) const { return size_t(block_of(time) - blocks_.begin()); }

 private:
  std::vector<BlockHistory>::const_iterator block_of(uint32_t time) const {
    return std::upper_bound(blocks_.begin(), blocks_.end(), time, [](uint32_t t, const BlockHistory& b) { return t < b.start; }) -
           1;
  }

  uint32_t barrier_ = 1;
  // seen_[thread][lane]: what that lane of its warp did earlier than this is before what the thread does now.
  uint32_t seen_[1024][32] = {};
  std::vector<BlockHistory> blocks_;
};

}  // namespace cuda_shim
