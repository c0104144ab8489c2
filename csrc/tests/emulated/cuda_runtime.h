// Stands in the place of CUDA's header when csrc/cuda is compiled as C++ for the CPU: the words of the language and the few functions of
// the runtime that those sources use. What a launch does is in grid.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "grid.h"

#define __global__
#define __device__
#define __host__
// Blocks run one after the other, so one copy is enough; a section of their own, so that all of it can be overwritten between blocks.
// Not in a template, nor in an inline function: GCC forgets the section there.
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { emulated::barrier(file, line); }

// Nothing runs between two barriers but one thread.
inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
  const unsigned long long before = *address;
  *address = std::max(before, value);
  return before;
}

using std::max;
using std::min;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorInvalidDevice };
using cudaStream_t = struct CUstream_st*;

namespace emulated {
constexpr int kDevices = 2;
}

cudaError_t cudaGetDevice(int* result);
cudaError_t cudaSetDevice(int chosen);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
