// Threads for copies that are worth them.
#pragma once

#include <cstdint>
#include <functional>

namespace sjd2::cpu {

// Call work(i) for every i in 0 ... items - 1 on at most `threads` threads, the caller being one of them, and wait for all. `bytes` is
// what all items together move: too few, and the caller does them alone. `work` must not throw.
void parallel_for(int64_t items, int64_t bytes, int threads, const std::function<void(int64_t)>& work);

}  // namespace sjd2::cpu
