// Runs the threads of a grid on the CPU, one at a time: block by block, and within a block each thread up to its next barrier.
//
// Between two barriers a GPU's threads may run in any order, and so may its blocks; here the order is chosen. What a kernel does must not
// depend on it: a race, or a barrier that is missing, shows as a difference between two orders. One thread of the system at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulated {

enum class Order { kAscending, kDescending, kShuffled };

// From the next launch on; `seed` is that of the shuffled order, which is another one between any two barriers.
void set_order(Order order, uint64_t seed = 0);

// What was launched, and where.
struct Launched {
  dim3 grid, block;
  int device;
  void* stream;
};

std::vector<Launched>& launches();

// Run `kernel` for every thread and come back when all have ended. A configuration that a GPU refuses is left for cudaGetLastError();
// a barrier that not all threads of a block reach throws.
void launch(dim3 grid, dim3 block, void* stream, const std::function<void()>& kernel);

// A thread waits until all of its block are here: at this file and line.
void barrier(const char* file, int line);

}  // namespace emulated
