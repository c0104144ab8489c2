// What csrc/tests/emulated promises: kernels that are right give the same in every order, those that are wrong show it.
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runtime.h"

namespace {

using emulated::Order;

constexpr unsigned kThreads = 96;

// What `launch` writes into `size` numbers, in the three orders.
template <typename Launch>
std::vector<std::vector<int>> in_all_orders(size_t size, Launch launch) {
  std::vector<std::vector<int>> results;
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    emulated::set_order(order, 7);
    results.emplace_back(size, -1);
    launch(results.back().data());
    CHECK(cudaGetLastError() == cudaSuccess);
  }
  return results;
}

// Every thread reads what its neighbours wrote: from before them and from behind them in any order.
template <bool kBarrier>
void neighbours(int* result, unsigned* shared) {
  shared[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  result[threadIdx.x] = static_cast<int>(shared[(threadIdx.x + 1) % kThreads] + 1000 * shared[(threadIdx.x + kThreads - 1) % kThreads]);
}

void with_barrier(int* result) {
  __shared__ unsigned shared[kThreads];
  neighbours<true>(result, shared);
}

void without_barrier(int* result) {
  __shared__ unsigned shared[kThreads];
  neighbours<false>(result, shared);
}

void a_missing_barrier_shows() {
  const auto right = in_all_orders(kThreads, [](int* result) { emulated::launch(1, kThreads, nullptr, [=] { with_barrier(result); }); });
  for (unsigned n = 0; n < kThreads; ++n)
    CHECK(right[0][n] == static_cast<int>((n + 1) % kThreads + 1000 * ((n + kThreads - 1) % kThreads)));
  CHECK(right[1] == right[0] && right[2] == right[0]);
  const auto wrong = in_all_orders(kThreads, [](int* result) { emulated::launch(1, kThreads, nullptr, [=] { without_barrier(result); }); });
  CHECK(wrong[0] != wrong[1] && wrong[0] != wrong[2] && wrong[1] != wrong[2]);
}

void races_between_blocks_show() {
  const auto last = in_all_orders(1, [](int* result) { emulated::launch(dim3(5, 2), 1, nullptr, [=] { *result = 10 * blockIdx.y + blockIdx.x; }); });
  CHECK(last[0][0] == 14 && last[1][0] == 0 && last[2][0] != 14 && last[2][0] != 0);
}

void every_thread_runs_once() {
  const dim3 grid(3, 4, 2), block(5, 2, 3);
  const auto results = in_all_orders(24 * 30, [&](int* result) {
    emulated::launch(grid, block, nullptr, [=] {
      CHECK(gridDim.x == 3 && gridDim.y == 4 && gridDim.z == 2 && blockDim.x == 5 && blockDim.y == 2 && blockDim.z == 3);
      const unsigned number = blockIdx.x + 3 * (blockIdx.y + 4 * blockIdx.z), thread = threadIdx.x + 5 * (threadIdx.y + 2 * threadIdx.z);
      __syncthreads();
      ++result[number * 30 + thread];
    });
  });
  for (const auto& result : results) CHECK(result == std::vector<int>(24 * 30, 0));
}

void leave_something(int* result) {
  __shared__ int shared;
  result[blockIdx.x] = shared;
  shared = 0;
}

void shared_memory_begins_with_anything() {
  const auto results = in_all_orders(3, [](int* result) { emulated::launch(3, 1, nullptr, [=] { leave_something(result); }); });
  for (const auto& result : results)
    for (const int found : result) CHECK(found != 0 && found != -1);
}

template <typename Kernel>
void expect_failure(unsigned threads, Kernel kernel, const std::string& part) {
  std::string message;
  try {
    emulated::launch(1, threads, nullptr, kernel);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  if (message.find(part) == std::string::npos) std::fprintf(stderr, "expected '%s', got '%s'\n", part.c_str(), message.c_str());
  CHECK(message.find(part) != std::string::npos);
}

void barriers_are_for_all() {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    emulated::set_order(order, 3);
    const auto some = [] {
      if (threadIdx.x < 60) __syncthreads();
    };
    expect_failure(64, some, "60 of 64 threads wait at ");
    const auto more_often = [] {
      for (unsigned n = 0; n < 2 + (threadIdx.x == 5); ++n) __syncthreads();
    };
    expect_failure(64, more_often, "1 of 64 threads wait at ");
    const auto elsewhere = [] {
      if (threadIdx.x == 2) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    };
    expect_failure(64, elsewhere, "others at ");
  }
  a_missing_barrier_shows();  // and what was given up is not in the way of what comes next
}

void configurations_that_a_gpu_refuses() {
  const auto refused = [](dim3 grid, dim3 block) {
    bool ran = false;
    emulated::launch(grid, block, nullptr, [&] { ran = true; });
    const cudaError_t status = cudaGetLastError();
    CHECK(status == cudaErrorInvalidConfiguration && !ran && cudaGetLastError() == cudaSuccess);
    CHECK(std::string(cudaGetErrorString(status)).find("invalid configuration: grid ") == 0);
  };
  refused(0, 1);
  refused(dim3(1, 0), 1);
  refused(dim3(1, 1, 0), 1);
  refused(1, 0);
  refused(1, 1025);
  refused(1, dim3(32, 33));
  refused(1, dim3(1, 1, 65));
  refused(dim3(1, 65536), 1);
  refused(dim3(1, 1, 65536), 1);
  refused(dim3(1u << 31), 1);
  const auto allowed = in_all_orders(1, [](int* result) { emulated::launch(dim3(1, 65535), 1, nullptr, [=] { ++*result; }); });
  CHECK(allowed[0][0] == 65534 && allowed[2][0] == 65534);
}

}  // namespace

int main() {
  a_missing_barrier_shows();
  races_between_blocks_show();
  every_thread_runs_once();
  shared_memory_begins_with_anything();
  barriers_are_for_all();
  configurations_that_a_gpu_refuses();
  return 0;
}
