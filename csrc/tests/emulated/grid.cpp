#include "grid.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_runtime.h"
#include "fibers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The linker's names for the section that __shared__ puts variables into, if there are any.
extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulated {
namespace {

constexpr uint64_t kMostThreads = 1024;
constexpr unsigned kMostBlocks = 65535;  // along y and z

Order order = Order::kAscending;
std::mt19937_64 shuffle;
int device = 0;
cudaError_t last_error = cudaSuccess;
std::string refused;  // the configuration of the launch that was

// Where a thread waits.
struct Site {
  const char* file;
  int line;
};

bool operator==(const Site& one, const Site& other) { return one.line == other.line && std::strcmp(one.file, other.file) == 0; }

std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }
std::string text(unsigned x, unsigned y, unsigned z) { return std::to_string(x) + " x " + std::to_string(y) + " x " + std::to_string(z); }

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Site> sites;
size_t current = 0;

void put_in_order(std::vector<size_t>& numbers) {
  std::iota(numbers.begin(), numbers.end(), size_t{0});
  if (order == Order::kDescending) std::reverse(numbers.begin(), numbers.end());
  if (order == Order::kShuffled) std::shuffle(numbers.begin(), numbers.end(), shuffle);
}

uint3 place(uint64_t number, const dim3& size) {
  const uint64_t layer = uint64_t{size.x} * size.y;
  return {static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y), static_cast<unsigned>(number / layer)};
}

// A block begins with anything in its shared memory, never with what the block before it left there.
void poison_shared_memory() {
  if (__start_emulated_shared != nullptr) std::memset(__start_emulated_shared, 0xA5, __stop_emulated_shared - __start_emulated_shared);
}

[[noreturn]] void fail(const std::string& what) {
  fibers.clear();  // some hold a thread that will never go on
  throw std::runtime_error("block " + text(blockIdx.x, blockIdx.y, blockIdx.z) + ": " + what);
}

void run_block(const std::function<void()>& kernel, std::vector<size_t>& threads) {
  poison_shared_memory();
  while (fibers.size() < threads.size()) fibers.push_back(std::make_unique<Fiber>());
  for (size_t thread = 0; thread < threads.size(); ++thread) fibers[thread]->start(kernel);
  for (;;) {
    size_t waiting = 0;
    put_in_order(threads);
    const Site* first = nullptr;
    const Site* other = nullptr;
    for (const size_t thread : threads) {
      current = thread;
      threadIdx = place(thread, blockDim);
      if (!fibers[thread]->resume()) continue;
      ++waiting;
      if (first == nullptr) first = &sites[thread];
      if (!(sites[thread] == *first)) other = &sites[thread];
    }
    if (waiting == 0) return;
    if (waiting < threads.size()) {
      fail(std::to_string(waiting) + " of " + std::to_string(threads.size()) + " threads wait at " + text(*first) + ", the others have ended");
    }
    if (other != nullptr) fail("threads wait at " + text(*first) + ", others at " + text(*other));
  }
}

}  // namespace

void set_order(Order chosen, uint64_t seed) {
  order = chosen;
  shuffle.seed(seed);
}

std::vector<Launched>& launches() {
  static std::vector<Launched> all;
  return all;
}

void launch(dim3 grid, dim3 block, void* stream, const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || threads > kMostThreads || block.z > 64 || grid.x > INT32_MAX || grid.y > kMostBlocks || grid.z > kMostBlocks) {
    last_error = cudaErrorInvalidConfiguration;
    refused = "invalid configuration: grid " + text(grid.x, grid.y, grid.z) + ", block " + text(block.x, block.y, block.z);
    return;
  }
  launches().push_back({grid, block, device, stream});
  gridDim = grid, blockDim = block;
  sites.resize(std::max<size_t>(sites.size(), threads));
  std::vector<size_t> blocks(size_t{grid.x} * grid.y * grid.z), order_of_threads(threads);
  put_in_order(blocks);
  for (const size_t number : blocks) {
    blockIdx = place(number, grid);
    run_block(kernel, order_of_threads);
  }
}

void barrier(const char* file, int line) {
  sites[current] = {file, line};
  Fiber::stop();
}

}  // namespace emulated

cudaError_t cudaGetDevice(int* result) {
  *result = emulated::device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int chosen) {
  if (chosen < 0 || chosen >= emulated::kDevices) return cudaErrorInvalidDevice;
  emulated::device = chosen;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidConfiguration) return emulated::refused.c_str();
  return error == cudaSuccess ? "no error" : "invalid device";
}

// For Python, which has the module but no header: tests/kv_cache/test_emulated.py.
extern "C" __attribute__((visibility("default"))) void sjd2_emulated_order(int order, uint64_t seed) {
  emulated::set_order(static_cast<emulated::Order>(order), seed);
}
