// The CPU operations on small caches whose every element says where it came from. What Python compares with the PyTorch definitions is not
// repeated; this is for what sanitizers see: ends of buffers, odd strides, threads, and calls that must write nothing.
#include <numeric>
#include <thread>
#include <vector>

#include "../kv_cache.h"
#include "check.h"

namespace {

using namespace sjd2;
using Longs = std::vector<int64_t>;

// [pages, heads, columns, width] of int16, exactly as large as it must be: a byte too far is seen.
struct Cache {
  int64_t size[4];
  std::vector<int16_t> data;

  Cache(int64_t pages, int64_t heads, int64_t columns, int64_t width, int16_t first = 0)
      : size{pages, heads, columns, width}, data(pages * heads * columns * width) {
    std::iota(data.begin(), data.end(), first);
  }
  Tensor view() {
    const int64_t item = sizeof(int16_t);
    return {reinterpret_cast<char*>(data.data()),
            {size[0], size[1], size[2], size[3]},
            {size[1] * size[2] * size[3] * item, size[2] * size[3] * item, size[3] * item, item},
            item};
  }
  int16_t& at(int64_t page, int64_t head, int64_t column, int64_t d) {
    return data[((page * size[1] + head) * size[2] + column) * size[3] + d];
  }
};

Vector vector(Longs& values) { return {values.data(), static_cast<int64_t>(values.size()), 1}; }

Matrix matrix(Longs& values, int64_t rows) {
  const int64_t columns = static_cast<int64_t>(values.size()) / rows;
  return {values.data(), rows, columns, columns, 1};
}

constexpr Matrix kDense{nullptr, 0, 0, 0, 0};
constexpr FreeList kNoPages{nullptr, 0, 0};

void append_reaches_the_last_column_and_no_further() {
  Cache keys(3, 2, 5, 3), values(3, 2, 5, 1), new_keys(3, 2, 2, 3, 100), new_values(3, 2, 2, 1, 200);
  Longs lengths{3, -1, 0};
  CHECK(cpu::append(keys.view(), values.view(), new_keys.view(), new_values.view(), vector(lengths), kDense, 1) == kFits);
  CHECK(keys.at(0, 1, 4, 2) == new_keys.at(0, 1, 1, 2));
  CHECK(values.at(2, 1, 1, 0) == new_values.at(2, 1, 1, 0));
  CHECK(keys.at(1, 0, 0, 0) == 30);
  CHECK(keys.at(2, 0, 2, 0) == 66);
}

void what_does_not_fit_writes_nothing() {
  Cache keys(2, 1, 4, 2), values(2, 1, 4, 2), fresh(2, 1, 3, 2, 100);
  const Cache before = keys;
  for (const int64_t bad : {int64_t{2}, int64_t{4}, INT64_MAX}) {
    Longs lengths{0, bad};
    CHECK(cpu::append(keys.view(), values.view(), fresh.view(), fresh.view(), vector(lengths), kDense, 1) == 1);
    Longs new_lengths{0, bad}, old_lengths{0, 0};
    CHECK(cpu::rollback(vector(old_lengths), vector(new_lengths), {keys.view()}, 1, kDense, kNoPages, 4, 1) == 1);
    CHECK(old_lengths[1] == 0);
    Longs rows{1, bad}, both{1, 1};
    CHECK(cpu::compact_rows({keys.view()}, vector(both), vector(rows), 1) == 1);
    Longs columns{0, bad == 2 ? 4 : bad};
    CHECK(cpu::compact_columns({keys.view()}, vector(both), matrix(columns, 2), kDense, 1) == 1);
    Longs long_row{1, bad == 2 ? 4 : bad}, next{0, 1};
    CHECK(cpu::compact_columns({keys.view()}, vector(long_row), matrix(next, 2), kDense, 1) == 1);
  }
  CHECK(keys.data == before.data);
}

void pages_go_round() {
  Cache pool(4, 1, 2, 1);
  Longs table(2 * 3, -1), lengths{0, 0}, free_list{4, 3, 2, 1, 0};
  const Longs untouched = free_list;
  CHECK(cpu::reserve(matrix(table, 2), vector(free_list), vector(lengths), 3, 2) == kFits);
  CHECK((table == Longs{0, 1, -1, 2, 3, -1}));
  Longs same = lengths;
  CHECK(cpu::rollback(vector(lengths), vector(same), {pool.view()}, 3, matrix(table, 2), vector(free_list), 2, 1) == kFits);
  CHECK(free_list == untouched);
  CHECK((table == Longs(6, -1)));
  CHECK(pool.at(1, 0, 0, 0) == 0 && pool.at(1, 0, 1, 0) == 3);  // columns 0 to 2 were scrubbed, column 3 never was anyone's

  Longs long_rows{3, 3};
  CHECK(cpu::reserve(matrix(table, 2), vector(free_list), vector(long_rows), 3, 2) == 1);  // six pages of four
  CHECK(cpu::reserve(matrix(table, 2), vector(free_list), vector(long_rows), 4, 2) == 0);  // four pages of three entries
  CHECK(free_list == untouched);

  CHECK(cpu::reserve(matrix(table, 2), vector(free_list), vector(lengths), 4, 2) == kFits);
  Longs rows{1}, filled{4, 4};
  CHECK(cpu::compact_table(matrix(table, 2), vector(free_list), vector(filled), vector(rows)) == kFits);
  CHECK((table == Longs{2, 3, -1, -1, -1, -1}));
  CHECK((filled == Longs{4, 0}));
  CHECK(free_list[0] == 2 && free_list[2] == 0 && free_list[1] == 1);
}

void pages_in_two_places_are_refused() {
  Cache pool(3, 1, 2, 1), fresh(2, 1, 2, 1, 100);
  const Cache before = pool;
  Longs shared{1, 1}, beyond{0, 3}, lengths{0, 0}, free_list{1, 0, 7, 7}, broken{4, 0, 1, 2}, rows{0, 0};
  for (Longs* table : {&shared, &beyond}) {
    CHECK(cpu::append(pool.view(), pool.view(), fresh.view(), fresh.view(), vector(lengths), matrix(*table, 2), 1) == 1);
    CHECK(cpu::gather(pool.view(), pool.view(), fresh.view(), fresh.view(), vector(lengths), matrix(*table, 2), 1) == 1);
  }
  Longs taken{0, -1}, empty{-1, -1};
  CHECK(cpu::reserve(matrix(taken, 2), vector(free_list), vector(lengths), 2, 2) == 0);  // page 0 is free and taken
  CHECK(cpu::reserve(matrix(empty, 2), vector(broken), vector(lengths), 0, 2) == 0);     // four free pages of three
  CHECK(cpu::compact_table(matrix(empty, 2), vector(free_list), vector(lengths), vector(rows)) == 1);
  CHECK(pool.data == before.data);
}

void several_callers_share_the_threads() {
  const auto work = [] {
    Cache keys(2, 16, 300, 64), values = keys, fresh(2, 16, 128, 64, 9);
    for (int round = 0; round < 20; ++round) {
      Longs lengths{100, 172};
      CHECK(cpu::append(keys.view(), values.view(), fresh.view(), fresh.view(), vector(lengths), kDense, 4) == kFits);
      for (int64_t head = 0; head < 16; ++head) CHECK(values.at(1, head, 299, 63) == fresh.at(1, head, 127, 63));
      Longs rows{1, 0};
      CHECK(cpu::compact_rows({keys.view(), values.view()}, vector(lengths), vector(rows), 4) == kFits);
    }
  };
  std::vector<std::thread> callers;
  for (int n = 0; n < 3; ++n) callers.emplace_back(work);
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
  append_reaches_the_last_column_and_no_further();
  what_does_not_fit_writes_nothing();
  pages_go_round();
  pages_in_two_places_are_refused();
  several_callers_share_the_threads();
  return 0;
}
