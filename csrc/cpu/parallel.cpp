#include "parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace sjd2::cpu {
namespace {

// Waking a parked thread and hearing from it costs some microseconds, which a core copies a few hundred kilobytes in.
constexpr int64_t kWorthAThread = 1 << 18;

struct Job {
  const std::function<void(int64_t)>* work;
  int64_t items;
  std::atomic<int64_t> next{0};
  int helpers_inside = 0;  // guarded by the pool's mutex

  void run() {
    for (int64_t i = next++; i < items; i = next++) (*work)(i);
  }
};

// Helpers sleep until a job is posted. The caller never waits for a helper that has not started on its job, so helpers that are
// slow to wake cost nothing.
class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) threads_.emplace_back([this] { help(); });
      job_ = &job;
      wanted_ = helpers;
    }
    for (int n = 0; n < helpers; ++n) wake_.notify_one();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    finished_.wait(lock, [&] { return job.helpers_inside == 0; });
  }

 private:
  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && wanted_ > 0; });
      Job& job = *job_;
      --wanted_;
      ++job.helpers_inside;
      lock.unlock();
      job.run();
      lock.lock();
      if (--job.helpers_inside == 0) finished_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  std::vector<std::thread> threads_;
};

std::mutex pool_in_use;
Pool* pool = nullptr;
pid_t pool_owner = 0;

}  // namespace

void parallel_for(int64_t items, int64_t bytes, int threads, const std::function<void(int64_t)>& work) {
  const int64_t useful = std::min<int64_t>({items, threads, bytes / kWorthAThread});
  // A second caller at the same time does its own work: the helpers are taken.
  std::unique_lock<std::mutex> lock(pool_in_use, std::defer_lock);
  if (useful < 2 || !lock.try_lock()) {
    for (int64_t i = 0; i < items; ++i) work(i);
    return;
  }
  // Threads do not survive a fork: a child starts its own pool. A pool is never taken down, for its threads sleep until the process
  // ends and may not outlive what they wait on.
  if (pool_owner != getpid()) {
    pool = new Pool;
    pool_owner = getpid();
  }
  Job job{&work, items};
  pool->run(job, static_cast<int>(useful) - 1);
}

}  // namespace sjd2::cpu
