// Lengths, block tables and the free list. One block does each: there is little to move, but pages must change hands in the same order
// every time, so a page's place in the free list comes from a prefix sum over rows and never from a race.
#include "device.cuh"
#include "plan.cuh"

namespace sjd2::cuda {
namespace {

// The threads of the block cut the rows into runs of neighbours.
struct Share {
  int64_t begin, end;

  __device__ explicit Share(int64_t rows) {
    const int64_t each = (rows + blockDim.x - 1) / blockDim.x;
    begin = min(threadIdx.x * each, rows);
    end = min(begin + each, rows);
  }
};

// Sum of `value` over the threads before this one; `total` over all.
__device__ int64_t sum_before(int64_t value, int64_t& total) {
  __shared__ int64_t sums[kThreads];
  __syncthreads();
  sums[threadIdx.x] = value;
  for (unsigned step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    const int64_t left = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += left;
  }
  __syncthreads();
  total = sums[kThreads - 1];
  return sums[threadIdx.x] - value;
}

__device__ void mark(const Flags& overflow, int64_t row) {
  if (overflow.data != nullptr) overflow.data[row * overflow.stride] = true;
}

// Pages that row `row` gives back are those of entries keep(row) ... of the table. The first page in the order of rows and columns ends
// on top of the stack.
template <typename Keep>
__device__ void give_back(const Matrix& table, const FreeList& free_list, Keep keep) {
  const Share share(table.rows);
  int64_t mine = 0;
  for (int64_t row = share.begin; row < share.end; ++row)
    for (int64_t n = keep(row); n < table.columns; ++n) mine += at(table, row, n) >= 0;
  const int64_t before = at(free_list, 0);
  int64_t total;
  int64_t rank = sum_before(mine, total);
  for (int64_t row = share.begin; row < share.end; ++row) {
    for (int64_t n = keep(row); n < table.columns; ++n) {
      const int64_t page = at(table, row, n);
      if (page < 0) continue;
      const int64_t place = before + total - rank++;
      // More pages than there are: the table holds some twice. Nothing is written behind the list.
      if (place < free_list.size) at(free_list, place) = page;
      at(table, row, n) = -1;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) at(free_list, 0) = min(before + total, free_list.size - 1);
}

__global__ void rollback_kernel(Vector lengths, Vector new_lengths, int64_t window, Matrix table, FreeList free_list,
                                                           int64_t page_size, Flags overflow) {
  const int64_t capacity = capacity_of(table, page_size);
  const auto skipped = [&](int64_t row) {
    const int64_t length = at(lengths, row), new_length = at(new_lengths, row);
    return !is_rolled_back(length, new_length) || !may_roll_back(length, new_length, window, capacity);
  };
  if (free_list.data != nullptr) {
    give_back(table, free_list, [&](int64_t row) { return skipped(row) ? table.columns : pages_for(at(new_lengths, row), page_size); });
  }
  const Share share(lengths.size);
  for (int64_t row = share.begin; row < share.end; ++row) {
    if (!skipped(row)) {
      at(lengths, row) = at(new_lengths, row);
    } else if (is_rolled_back(at(lengths, row), at(new_lengths, row))) {
      mark(overflow, row);
    }
  }
}

__global__ void reserve_kernel(Matrix table, FreeList free_list, Vector lengths, int64_t count, int64_t page_size,
                                                           Flags overflow) {
  const auto fits = [&](int64_t row) { return at(lengths, row) <= table.columns * page_size - count; };
  const auto needed = [&](int64_t row) { return at(lengths, row) < 0 || !fits(row) ? 0 : pages_for(at(lengths, row) + count, page_size); };
  const auto missing = [&](int64_t row) {
    int64_t pages = 0;
    for (int64_t n = 0; n < needed(row); ++n) pages += at(table, row, n) < 0;
    return pages;
  };
  const Share share(table.rows);
  int64_t mine = 0;
  for (int64_t row = share.begin; row < share.end; ++row) mine += missing(row);
  const int64_t available = at(free_list, 0);
  __shared__ unsigned long long taken;
  if (threadIdx.x == 0) taken = 0;
  int64_t total;
  int64_t rank = sum_before(mine, total);
  for (int64_t row = share.begin; row < share.end; ++row) {
    const int64_t pages = missing(row);
    if (!fits(row) || (pages > 0 && rank + pages > available)) {
      if (at(lengths, row) >= 0) mark(overflow, row);
    } else if (pages > 0) {
      int64_t place = available - rank;
      for (int64_t n = 0; n < needed(row); ++n)
        if (at(table, row, n) < 0) at(table, row, n) = at(free_list, place--);
      atomicMax(&taken, static_cast<unsigned long long>(rank + pages));
    }
    rank += pages;
  }
  __syncthreads();
  if (threadIdx.x == 0) at(free_list, 0) = available - static_cast<int64_t>(taken);
}

__global__ void compact_table_kernel(Matrix table, FreeList free_list, Vector lengths, Vector rows, Plan plan,
                                                                 Flags overflow) {
  int64_t* const old_lengths = plan.old_lengths(1);
  int64_t* const source = old_lengths + table.rows;  // of every slot, -1 for none
  if (threadIdx.x == 0) {
    // old_lengths holds which rows are kept until it gets its own content.
    for (int64_t row = 0; row < table.rows; ++row) old_lengths[row] = 0;
    for (int64_t i = 0; i < table.rows; ++i) {
      source[i] = i >= rows.size ? -1 : at(rows, i) < 0 ? i : at(rows, i);
      if (source[i] < 0) continue;
      if (source[i] >= table.rows || old_lengths[source[i]] != 0) {  // no such row, or its pages went to another slot
        source[i] = -1;
        mark(overflow, i);
      } else {
        old_lengths[source[i]] = 1;
      }
    }
  }
  __syncthreads();
  give_back(table, free_list, [&](int64_t row) { return old_lengths[row] != 0 ? table.columns : 0; });
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int64_t row = 0; row < table.rows; ++row) old_lengths[row] = at(lengths, row);
    for (int64_t row = 0; row < table.rows; ++row) at(lengths, row) = source[row] < 0 ? 0 : old_lengths[source[row]];
    plan.count(0) = plan_moves([&](int64_t i) { return source[i]; }, rows.size, plan.moves(0), plan.readers(0));
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < table.columns; n += blockDim.x) {
    int64_t aside = -1;
    for (int64_t step = 0; step < plan.count(0); ++step) {
      const Move move = plan.moves(0)[step];
      const int64_t page = move.from < 0 ? aside : at(table, move.from, n);
      if (move.to == kAside) {
        aside = page;
      } else {
        at(table, move.to, n) = page;
      }
    }
    for (int64_t row = 0; row < table.rows; ++row)
      if (source[row] < 0) at(table, row, n) = -1;
  }
}

}  // namespace

void rollback(Vector lengths, Vector new_lengths, const std::vector<Tensor>& caches, int64_t window, Matrix table, FreeList free_list,
              int64_t page_size, Flags overflow, Queue queue) {
  if (lengths.size == 0) return;
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  scrub(caches, lengths, new_lengths, window, table, stream);
  enqueue("kv rollback", 1, kThreads, stream, rollback_kernel, lengths, new_lengths, window, table, free_list, page_size, overflow);
}

void reserve(Matrix table, FreeList free_list, Vector lengths, int64_t count, int64_t page_size, Flags overflow, Queue queue) {
  if (lengths.size == 0) return;
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  enqueue("kv reserve", 1, kThreads, stream, reserve_kernel, table, free_list, lengths, count, page_size, overflow);
}

void compact_table(Matrix table, FreeList free_list, Vector lengths, Vector rows, int64_t* workspace, Flags overflow, Queue queue) {
  if (lengths.size == 0) return;
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  const Plan plan{rows.size, workspace};
  enqueue("kv compact: table", 1, kThreads, stream, compact_table_kernel, table, free_list, lengths, rows, plan, overflow);
}

}  // namespace sjd2::cuda
