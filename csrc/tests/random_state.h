// Random arguments of the cache operations, all of one call together.
#pragma once

#include "../kv_cache.h"
#include "random_cache.h"

namespace sjd2::tests {

constexpr cuda::Queue kQueue{0, nullptr};

// All that a call reads and writes. Comparing two of them also compares what lies between the views.
struct State {
  std::vector<Cache> caches;  // of append and gather: keys, values
  Cache keys, values;
  Indices lengths, new_lengths, rows, columns, table, free_list;
  bool paged = false;
  int64_t window = 0, page_size = 0;
  std::vector<char> flags;

  std::vector<Tensor> views() {
    std::vector<Tensor> all;
    for (Cache& cache : caches) all.push_back(cache.view());
    return all;
  }
  Matrix block_table() { return paged ? table.matrix() : Matrix{nullptr, 0, 0, 0, 0}; }
  FreeList free_pages() { return paged ? free_list.vector() : FreeList{nullptr, 0, 0}; }
  void mark(int64_t row) { flags[2 * row] = 1; }
  Flags overflow() { return {reinterpret_cast<bool*>(flags.data()), 2}; }

  bool operator==(const State& other) const {
    return caches == other.caches && keys == other.keys && values == other.values && lengths == other.lengths &&
           new_lengths == other.new_lengths && rows == other.rows && columns == other.columns && table == other.table &&
           free_list == other.free_list && flags == other.flags;
  }
};

// Lengths that a row may have, and now and then one that it cannot have.
inline int64_t random_length(Random& random, int64_t most, bool wrong) {
  if (wrong && random.one_in(4)) return random.one_in(3) ? (random.one_in(2) ? INT64_MAX : INT64_MAX - random.in(0, 5)) : most + random.in(1, 5);
  return random.in(-2, std::max<int64_t>(most, 0));
}

// Caches, dense or paged, of rows whose lengths leave room for `window` columns unless `wrong`.
inline State random_state(Random& random, bool paged, int64_t layers, bool one_itemsize, int64_t window, bool wrong) {
  State state;
  state.paged = paged, state.window = window;
  const bool many_rows = random.one_in(20);  // more than threads
  const int64_t rows = many_rows ? random.in(257, 300) : random.in(1, 5);
  const int64_t heads = many_rows ? 1 : random.in(1, 3);
  const int64_t entries = random.in(1, 4);
  state.page_size = paged ? random.in(1, 5) : random.in(std::max<int64_t>(window, 1), 12);
  if (!paged && !many_rows && random.one_in(10)) state.page_size += 300;  // several blocks along the columns
  const int64_t capacity = paged ? state.page_size * entries : state.page_size;
  std::vector<int64_t> lengths;
  for (int64_t row = 0; row < rows; ++row) lengths.push_back(random_length(random, capacity - window, wrong));
  state.lengths = indices_of(random, lengths);
  int64_t pages = rows;
  if (paged) {
    std::vector<int64_t> needed, all;
    pages = random.in(0, 5);
    for (const int64_t length : lengths) {
      const int64_t held = length < 0 ? 0 : length > capacity - window ? random.in(0, entries) : pages_for(length + window, state.page_size);
      needed.push_back(std::min(held, entries));
      pages += needed.back();
    }
    for (int64_t page = 0; page < pages; ++page) all.push_back(page);
    random.shuffle(all);
    state.table = random_indices(random, rows, entries);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = 0; n < entries; ++n) {
        const bool held = n < needed[row] && !(wrong && random.one_in(12));
        state.table.at(row, n) = held ? all.back() : -1;
        if (held) all.pop_back();
      }
    }
    std::vector<int64_t> free_list(pages + 1, -5);
    free_list[0] = static_cast<int64_t>(all.size());
    std::copy(all.begin(), all.end(), free_list.begin() + 1);
    state.free_list = indices_of(random, free_list);
  }
  const int64_t itemsize = int64_t{1} << random.in(0, 3);
  for (int64_t n = 0; n < 2 * layers; ++n) {
    const int64_t item = one_itemsize ? itemsize : int64_t{1} << random.in(0, 3), width = random.one_in(3) ? 16 * random.in(1, 5) : random.in(0, 9);
    state.caches.push_back(random_cache(random, {pages, heads, state.page_size, many_rows ? std::min<int64_t>(width, 4) : width}, item));
  }
  state.flags.assign(2 * rows, 0);
  return state;
}

inline void with_dense(Random& random, State& state, int64_t columns) {
  const auto beside = [&](const Cache& cache) {
    return random_cache(random, {state.lengths.size(), cache.layout.size[1], columns, cache.layout.size[3]}, cache.layout.itemsize);
  };
  state.keys = beside(state.caches[0]), state.values = beside(state.caches[1]);
}

// The scratch of a compaction, with anything in it.
inline std::vector<int64_t> workspace(int64_t maps, int64_t size, int64_t rows) {
  return std::vector<int64_t>(cuda::workspace_size(maps, size, rows), -99);
}

}  // namespace sjd2::tests
