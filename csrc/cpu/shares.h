// Who does what at a node: shares of the batch, and background tasks beside them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "parallel.h"

namespace advnas {

// A part of a batch that one thread takes.
struct Share {
  int64_t first, images;
};

// Cuts a batch into shares of whole groups. The first ones, one a thread and three quarters of the batch in all, are equal; the
// rest are small and go to whoever is free: cores are never equally fast for long. What lies in which share depends on nothing
// but the number of threads, and so do sums over them. bytes: what each share needs for such sums; small ones must fit a cache.
inline std::vector<Share> cut(int64_t batch, int64_t group, int64_t bytes = 0) {
  constexpr int64_t kMostEach = 8, kMostBytes = 4 << 20;
  const int64_t threads = at::get_num_threads(), groups = (batch + group - 1) / group;
  const int64_t most = threads == 1 ? 0 : std::min(kMostEach * threads, kMostBytes / std::max<int64_t>(1, bytes));
  const int64_t equal = most == 0 ? (groups + threads - 1) / threads : groups * 3 / 4 / threads;
  const int64_t left = groups - equal * threads, small = most == 0 ? 1 : (left + most - 1) / most;
  std::vector<Share> shares;
  for (int64_t first = 0; first < groups;) {
    const bool is_equal = equal > 0 && int64_t(shares.size()) < threads;
    const int64_t last = std::min(first + (is_equal ? equal : small), groups);
    shares.push_back({first * group, std::min(last * group, batch) - first * group});
    first = last;
  }
  return shares;
}

// Work of the same pass that waits for nothing and has time until the next node: packing the weights of that one, finishing the
// weight gradients of the last. What it fills must not be read before.
class BackgroundTasks {
 public:
  using Body = std::function<void(int64_t first, int64_t last)>;

  // body(first, last) for all rows, in slices that are worth a thread's turn.
  void add(int64_t rows, int64_t work_a_row, Body body) {
    constexpr int64_t kWork = 32768;
    const int64_t slice = std::max<int64_t>(1, kWork / std::max<int64_t>(1, work_a_row));
    for (int64_t first = 0; first < rows; first += slice) {
      slices_.push_back({bodies_.size(), first, std::min(first + slice, rows)});
    }
    bodies_.push_back(std::move(body));
  }
  int64_t num() const { return int64_t(slices_.size()); }
  void run(int64_t index) const {
    const auto& [body, first, last] = slices_[index];
    bodies_[body](first, last);
  }
  void clear() {
    slices_.clear();
    bodies_.clear();
  }

 private:
  struct Slice {
    size_t body;
    int64_t first, last;
  };
  std::vector<Body> bodies_;
  std::vector<Slice> slices_;
};

inline int64_t num_workers(int64_t items) { return std::min<int64_t>(items, at::get_num_threads()); }

// Calls body(worker, share) for every share and does the tasks; workers run at once. Each worker begins with a share, tasks
// come next, and small shares last, so that all finish together.
template <class Body>
void for_shares(int64_t shares, BackgroundTasks& tasks, const Body& body) {
  const int64_t all = shares + tasks.num(), workers = num_workers(all), begun = std::min(workers, shares);
  std::atomic<int64_t> next{workers};
  parallel_for(workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int64_t item = worker; item < all; item = next++) {
        const int64_t task = item - begun;
        if (task >= 0 && task < tasks.num()) {
          tasks.run(task);
        } else {
          body(worker, task < 0 ? item : item - tasks.num());
        }
      }
    }
  });
  tasks.clear();
}

inline void run_now(BackgroundTasks& tasks) {
  for_shares(0, tasks, [](int64_t, int64_t) {});
}

}  // namespace advnas
