// Columns between dense tensors and caches, dense or paged: append and gather. K and V in one launch, every byte read and written once.
#include "device.cuh"

namespace sjd2::cuda {
namespace {

constexpr int64_t kColumnsPerBlock = 128;

struct Transfer {
  Strided cache[2], dense[2];
  int64_t heads, rows, pages, page_size, window;
  Vector lengths;
  Matrix table;
  Flags overflow;
};

// Whether `count` columns from `begin` on exist, and are no more than the window: one thread looks for all of its block.
__device__ bool fits(const Transfer& job, int64_t row, int64_t begin, int64_t count) {
  __shared__ bool answer;
  __syncthreads();  // the answer for the row before has been read
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    answer = count <= job.window && exists(job.table, job.pages, job.page_size, row, begin, count);
    if (!answer && blockIdx.x == 0 && blockIdx.z == 0 && job.overflow.data != nullptr) job.overflow.data[row * job.overflow.stride] = true;
  }
  __syncthreads();
  return answer;
}

// grid: x heads * splits, y rows, z keys or values.
template <typename Unit, bool kToCache>
__global__ void transfer_kernel(const Transfer job, int64_t splits) {
  const Strided cache = job.cache[blockIdx.z], dense = job.dense[blockIdx.z];
  const int64_t head = blockIdx.x / splits, split = blockIdx.x % splits;
  for (int64_t row = blockIdx.y; row < job.rows; row += gridDim.y) {
    const int64_t length = at(job.lengths, row);
    if (length < 0) continue;
    // Append: `window` columns from `length` on. Gather: the first `length` columns, of at most `window`.
    const int64_t begin = kToCache ? length : 0, count = kToCache ? job.window : length;
    if (!fits(job, row, begin, count)) continue;
    for (int64_t c = split * blockDim.y + threadIdx.y; c < count; c += splits * blockDim.y) {
      const Place place = locate(job.table, job.page_size, row, begin + c);
      for (int64_t u = threadIdx.x; u < cache.units; u += blockDim.x) {
        Unit* const stored = cache.at<Unit>(place.page, head, place.slot, u);
        Unit* const plain = dense.at<Unit>(row, head, c, u);
        if constexpr (kToCache) {
          *stored = *plain;
        } else {
          *plain = *stored;
        }
      }
    }
  }
}

template <bool kToCache>
void transfer(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
              Flags overflow, Queue queue) {
  const int64_t rows = lengths.size, heads = key_cache.size[1], window = keys.size[2];
  // Rows whose columns have no place to be gathered to are marked like any that do not fit.
  if (rows == 0 || heads == 0 || (kToCache && window == 0)) return;
  const DeviceGuard guard(queue.device);
  int64_t unit = 16;
  for (const Tensor* tensor : {&key_cache, &value_cache, &keys, &values}) unit = unit_of(*tensor) < unit ? unit_of(*tensor) : unit;
  // A unit narrower than an element would cut the columns of a tensor with a stride between elements.
  if (is_spread(key_cache) || is_spread(value_cache) || is_spread(keys) || is_spread(values)) unit = key_cache.itemsize;
  Transfer job{};
  job.cache[0] = in_units(key_cache, unit), job.cache[1] = in_units(value_cache, unit);
  job.dense[0] = in_units(keys, unit), job.dense[1] = in_units(values, unit);
  job.heads = heads, job.rows = rows, job.pages = key_cache.size[0], job.page_size = key_cache.size[2], job.window = window;
  job.lengths = lengths, job.table = table, job.overflow = overflow;
  const int64_t splits = window == 0 ? 1 : (window + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const dim3 grid(at_most(heads * splits, INT32_MAX), at_most(rows, 65535), 2);
  with_unit(unit, [&](auto tag) {
    enqueue(kToCache ? "kv append" : "kv gather", grid, block_for(job.cache[0].units), static_cast<cudaStream_t>(queue.stream),
            transfer_kernel<decltype(tag), kToCache>, job, splits);
  });
}

}  // namespace

void append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
            Flags overflow, Queue queue) {
  transfer<true>(key_cache, value_cache, keys, values, lengths, table, overflow, queue);
}

void gather(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
            Flags overflow, Queue queue) {
  transfer<false>(key_cache, value_cache, keys, values, lengths, table, overflow, queue);
}

}  // namespace sjd2::cuda
