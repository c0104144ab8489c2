// Launching on the caller's device and stream, and views whose rows are cut into the widest units that fit them.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../addressing.h"

namespace sjd2::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Put a kernel on the stream. The one place that launches: C++ has no word for it, and csrc/tests/emulated, which runs the same sources
// on a CPU, says what it means there.
template <typename Kernel, typename... Arguments>
void enqueue(const char* what, dim3 grid, dim3 block, cudaStream_t stream, Kernel kernel, const Arguments&... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, block, 0, stream>>>(arguments...);
#else
  emulated::launch(grid, block, stream, [&] { kernel(arguments...); });
#endif
  check(cudaGetLastError(), what);
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A Tensor as a kernel walks it: `units` pieces of one size make a column of a head.
struct Strided {
  char* data;
  int64_t page, head, column, unit;
  int64_t units;

  template <typename Unit>
  __device__ Unit* at(int64_t p, int64_t h, int64_t c, int64_t u) const {
    return reinterpret_cast<Unit*>(data + p * page + h * head + c * column + u * unit);
  }
};

// Elements of a column do not lie side by side: no unit but an element will do.
inline bool is_spread(const Tensor& tensor) { return tensor.stride[3] != tensor.itemsize; }

// The widest unit, at most 16 bytes, that every piece of `tensor` is aligned to.
inline int64_t unit_of(const Tensor& tensor) {
  if (is_spread(tensor)) return tensor.itemsize;
  uint64_t bits = reinterpret_cast<uint64_t>(tensor.data) | static_cast<uint64_t>(tensor.size[3] * tensor.itemsize) | 16;
  for (int d = 0; d < 3; ++d)
    if (tensor.size[d] > 1) bits |= static_cast<uint64_t>(tensor.stride[d]);
  return static_cast<int64_t>(bits & (~bits + 1));
}

inline Strided in_units(const Tensor& tensor, int64_t unit) {
  const bool spread = is_spread(tensor);
  return {tensor.data,
          tensor.stride[0],
          tensor.stride[1],
          tensor.stride[2],
          spread ? tensor.stride[3] : unit,
          spread ? tensor.size[3] : tensor.size[3] * tensor.itemsize / unit};
}

// Call launch(Unit{}) with the type of that many bytes.
template <typename Launch>
void with_unit(int64_t unit, Launch launch) {
  switch (unit) {
    case 1: return launch(uint8_t{});
    case 2: return launch(uint16_t{});
    case 4: return launch(uint32_t{});
    case 8: return launch(uint2{});
    default: return launch(uint4{});
  }
}

constexpr int kThreads = 256;

// x over the units of a column, y over columns.
inline dim3 block_for(int64_t units) {
  unsigned x = 1;
  while (x < units && x < 64) x *= 2;
  return dim3(x, kThreads / x);
}

inline unsigned at_most(int64_t value, int64_t limit) { return static_cast<unsigned>(value < limit ? value : limit); }

}  // namespace sjd2::cuda
