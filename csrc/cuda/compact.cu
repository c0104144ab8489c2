// Columns and rows moved within caches, in place, all layers in one launch: a thread owns the same bytes of every slot and does the
// moves in their order, so that no two threads ever touch the same memory. Dropped columns are zeroed here too.
#include "device.cuh"
#include "plan.cuh"

namespace sjd2::cuda {
namespace {

// As many caches as the parameters of one launch hold; more take another launch.
constexpr int64_t kCaches = 56;
constexpr int64_t kColumnsPerBlock = 128;

struct Caches {
  Strided cache[kCaches];
};

// Call launch(caches, how many, Unit{}) until all of `caches` had their turn. One launch moves units of one size: caches whose elements lie
// side by side have one in common; one with a stride between its elements can only be moved element by element, with others of its itemsize.
template <typename Launch>
void for_each_launch(const std::vector<Tensor>& caches, Launch launch) {
  for (const int64_t itemsize : {0, 1, 2, 4, 8}) {  // 0: side by side
    Caches part{};
    std::vector<const Tensor*> together;
    const auto launch_them = [&] {
      int64_t unit = 16;
      for (const Tensor* cache : together) unit = unit_of(*cache) < unit ? unit_of(*cache) : unit;
      for (size_t i = 0; i < together.size(); ++i) part.cache[i] = in_units(*together[i], unit);
      if (!together.empty()) with_unit(unit, [&](auto tag) { launch(part, static_cast<unsigned>(together.size()), tag); });
      together.clear();
    };
    for (const Tensor& cache : caches) {
      if ((is_spread(cache) ? cache.itemsize : 0) != itemsize) continue;
      together.push_back(&cache);
      if (together.size() == kCaches) launch_them();
    }
    launch_them();
  }
}

__global__ void plan_rows_kernel(Plan plan, Vector lengths, Vector rows, Flags overflow) {
  int64_t* const old_lengths = plan.old_lengths(1);
  for (int64_t row = 0; row < lengths.size; ++row) old_lengths[row] = at(lengths, row);
  // A source that does not exist leaves its slot alone.
  const auto source = [&](int64_t i) { return at(rows, i) >= lengths.size ? -1 : at(rows, i); };
  plan.count(0) = plan_moves(source, plan.size, plan.moves(0), plan.readers(0));
  for (int64_t i = 0; i < lengths.size; ++i) {
    if (i < plan.size && at(rows, i) >= lengths.size && overflow.data != nullptr) overflow.data[i * overflow.stride] = true;
    at(lengths, i) = i >= plan.size ? 0 : source(i) < 0 ? old_lengths[i] : old_lengths[source(i)];
  }
}

// grid: x heads * splits, y caches.
template <typename Unit>
__global__ void move_rows_kernel(const Caches caches, Plan plan, int64_t splits, int64_t columns) {
  const Strided cache = caches.cache[blockIdx.y];
  const int64_t head = blockIdx.x / splits, split = blockIdx.x % splits, count = plan.count(0);
  const int64_t* const lengths = plan.old_lengths(1);
  const Move* const moves = plan.moves(0);
  for (int64_t c = split * blockDim.y + threadIdx.y; c < columns; c += splits * blockDim.y) {
    for (int64_t u = threadIdx.x; u < cache.units; u += blockDim.x) {
      Unit aside{};
      for (int64_t n = 0; n < count; ++n) {
        const Move move = moves[n];
        if (c >= lengths[source_of(move)]) continue;
        const Unit value = move.from < 0 ? aside : *cache.at<Unit>(move.from, head, c, u);
        if (move.to == kAside) {
          aside = value;
        } else {
          *cache.at<Unit>(move.to, head, c, u) = value;
        }
      }
    }
  }
}

__global__ void plan_columns_kernel(Plan plan, Vector lengths, Matrix columns, Matrix table, int64_t pages, int64_t page_size, Flags overflow) {
  for (int64_t row = blockIdx.x * blockDim.x + threadIdx.x; row < lengths.size; row += gridDim.x * blockDim.x) {
    const int64_t length = at(lengths, row), capacity = capacity_of(table, page_size);
    plan.count(row) = 0;
    if (length < 0) continue;
    bool fits = true;
    for (int64_t c = 0; c < plan.size && fits; ++c) {
      const int64_t column = at(columns, row, c);
      if (column < 0) continue;
      fits = length <= capacity && column <= capacity && exists(table, pages, page_size, row, length + column, 1) &&
             exists(table, pages, page_size, row, length + c, 1);
    }
    if (fits) {
      plan.count(row) = plan_moves([&](int64_t c) { return at(columns, row, c); }, plan.size, plan.moves(row), plan.readers(row));
    } else if (overflow.data != nullptr) {
      overflow.data[row * overflow.stride] = true;
    }
  }
}

// grid: x heads, y caches, z rows.
template <typename Unit>
__global__ void move_columns_kernel(const Caches caches, Plan plan, Vector lengths, Matrix table, int64_t page_size) {
  const Strided cache = caches.cache[blockIdx.y];
  const int64_t head = blockIdx.x;
  for (int64_t row = blockIdx.z; row < lengths.size; row += gridDim.z) {
    const int64_t count = plan.count(row), length = at(lengths, row);
    const Move* const moves = plan.moves(row);
    const auto slot = [&](int64_t column, int64_t u) {
      const Place place = locate(table, page_size, row, length + column);
      return cache.at<Unit>(place.page, head, place.slot, u);
    };
    for (int64_t u = threadIdx.x; u < cache.units; u += blockDim.x) {
      Unit aside{};
      for (int64_t n = 0; n < count; ++n) {
        const Move move = moves[n];
        const Unit value = move.from < 0 ? aside : *slot(move.from, u);
        if (move.to == kAside) {
          aside = value;
        } else {
          *slot(move.to, u) = value;
        }
      }
    }
  }
}

// grid: x heads, y caches, z rows.
template <typename Unit>
__global__ void scrub_kernel(const Caches caches, Vector lengths, Vector new_lengths, Matrix table, int64_t pages, int64_t page_size,
                             int64_t window) {
  const Strided cache = caches.cache[blockIdx.y];
  const int64_t head = blockIdx.x, capacity = capacity_of(table, page_size);
  for (int64_t row = blockIdx.z; row < lengths.size; row += gridDim.z) {
    const int64_t length = at(lengths, row), new_length = at(new_lengths, row);
    if (!is_rolled_back(length, new_length) || !may_roll_back(length, new_length, window, capacity)) continue;
    const int64_t end = end_of(length, window, capacity);
    for (int64_t c = new_length + threadIdx.y; c < end; c += blockDim.y) {
      const Place place = locate(table, page_size, row, c);
      if (place.page < 0 || place.page >= pages) continue;
      for (int64_t u = threadIdx.x; u < cache.units; u += blockDim.x) *cache.at<Unit>(place.page, head, place.slot, u) = Unit{};
    }
  }
}

}  // namespace

int64_t workspace_size(int64_t maps, int64_t size, int64_t rows) { return maps * Plan{size, nullptr}.per_map() + 2 * rows; }

void compact_rows(const std::vector<Tensor>& caches, Vector lengths, Vector rows, int64_t* workspace, Flags overflow, Queue queue) {
  if (lengths.size == 0) return;
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  const Plan plan{rows.size, workspace};
  const int64_t columns = caches.empty() ? 0 : caches[0].size[2];
  enqueue("kv compact: plan", 1, 1, stream, plan_rows_kernel, plan, lengths, rows, overflow);
  const int64_t splits = (columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  for_each_launch(caches, [&](const Caches& part, unsigned count, auto tag) {
    const int64_t heads = caches[0].size[1];
    if (heads == 0 || columns == 0) return;
    const dim3 grid(at_most(heads * splits, INT32_MAX), count);
    enqueue("kv compact: move", grid, block_for(part.cache[0].units), stream, move_rows_kernel<decltype(tag)>, part, plan, splits, columns);
  });
}

void compact_columns(const std::vector<Tensor>& caches, Vector lengths, Matrix columns, Matrix table, int64_t* workspace, Flags overflow,
                     Queue queue) {
  if (caches.empty() || lengths.size == 0 || columns.columns == 0) return;
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  const Plan plan{columns.columns, workspace};
  const int64_t pages = caches[0].size[0], heads = caches[0].size[1], page_size = caches[0].size[2];
  if (heads == 0 || page_size == 0) return;
  enqueue("kv compact: plan", at_most((lengths.size + 63) / 64, 65535), 64, stream, plan_columns_kernel, plan, lengths, columns, table, pages,
          page_size, overflow);
  for_each_launch(caches, [&](const Caches& part, unsigned count, auto tag) {
    const dim3 grid(at_most(heads, INT32_MAX), count, at_most(lengths.size, 65535));
    enqueue("kv compact: move", grid, 64, stream, move_columns_kernel<decltype(tag)>, part, plan, lengths, table, page_size);
  });
}

void scrub(const std::vector<Tensor>& caches, Vector lengths, Vector new_lengths, int64_t window, Matrix table, cudaStream_t stream) {
  if (caches.empty() || lengths.size == 0 || caches[0].size[1] == 0 || caches[0].size[2] == 0) return;
  for_each_launch(caches, [&](const Caches& part, unsigned count, auto tag) {
    const dim3 grid(at_most(caches[0].size[1], INT32_MAX), count, at_most(lengths.size, 65535));
    enqueue("kv rollback: scrub", grid, block_for(part.cache[0].units), stream, scrub_kernel<decltype(tag)>, part, lengths, new_lengths, table,
            caches[0].size[0], caches[0].size[2], window);
  });
}

}  // namespace sjd2::cuda
