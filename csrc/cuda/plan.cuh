// What the kernels of one compaction, or of one rollback, share.
#pragma once

#include <cuda_runtime.h>

#include "../moves.h"

namespace sjd2::cuda {

// What a compaction needs of its maps, written by a planning kernel; workspace_size() says how much that is.
struct Plan {
  int64_t size;
  int64_t* workspace;

  __host__ __device__ int64_t per_map() const { return 1 + 2 * most_moves(size) + size; }
  __device__ int64_t& count(int64_t map) const { return workspace[map * per_map()]; }
  __device__ Move* moves(int64_t map) const { return reinterpret_cast<Move*>(workspace + map * per_map() + 1); }
  __device__ int64_t* readers(int64_t map) const { return workspace + map * per_map() + 1 + 2 * most_moves(size); }
  __device__ int64_t* old_lengths(int64_t maps) const { return workspace + maps * per_map(); }
};

// Zero what a rollback drops.
void scrub(const std::vector<Tensor>& caches, Vector lengths, Vector new_lengths, int64_t window, Matrix table, cudaStream_t stream);

}  // namespace sjd2::cuda
