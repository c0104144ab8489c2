#include "../kv_cache.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "../addressing.h"
#include "../moves.h"
#include "parallel.h"

namespace sjd2::cpu {
namespace {

// A run of columns of one head.
struct Columns {
  char* data;
  int64_t column_stride;
  int64_t width_stride;
};

Columns columns_at(const Tensor& tensor, int64_t page, int64_t head, int64_t column) {
  return {tensor.data + page * tensor.stride[0] + head * tensor.stride[1] + column * tensor.stride[2], tensor.stride[2], tensor.stride[3]};
}

template <typename Element>
void copy_elements(Columns to, Columns from, int64_t count, int64_t width) {
  for (int64_t c = 0; c < count; ++c)
    for (int64_t d = 0; d < width; ++d)
      std::memcpy(to.data + c * to.column_stride + d * to.width_stride, from.data + c * from.column_stride + d * from.width_stride, sizeof(Element));
}

// Columns far apart, as where heads lie inside positions. Short pieces are copied inline, and what comes next is asked for ahead: a
// processor does not see strides of several kilobytes coming.
void copy_scattered(Columns to, Columns from, int64_t count, int64_t bytes) {
  constexpr int64_t kLine = 64, kAhead = 6, kShort = 1024;
  if (bytes % kLine != 0 || bytes > kShort) {
    for (int64_t c = 0; c < count; ++c) std::memcpy(to.data + c * to.column_stride, from.data + c * from.column_stride, bytes);
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    char* const target = to.data + c * to.column_stride;
    const char* const source = from.data + c * from.column_stride;
    for (int64_t byte = 0; byte < bytes; byte += kLine) {
      if (c + kAhead < count) __builtin_prefetch(source + kAhead * from.column_stride + byte);
      std::memcpy(target + byte, source + byte, kLine);
    }
  }
}

// `count` columns of `width` elements, in as few pieces as the strides allow.
void copy_columns(Columns to, Columns from, int64_t count, int64_t width, int64_t itemsize) {
  if (count == 0 || width == 0) return;  // there may be no address
  const int64_t bytes = width * itemsize;
  if (to.width_stride == itemsize && from.width_stride == itemsize) {
    if (to.column_stride == bytes && from.column_stride == bytes) {
      std::memcpy(to.data, from.data, count * bytes);
    } else {
      copy_scattered(to, from, count, bytes);
    }
    return;
  }
  switch (itemsize) {
    case 1: return copy_elements<uint8_t>(to, from, count, width);
    case 2: return copy_elements<uint16_t>(to, from, count, width);
    case 4: return copy_elements<uint32_t>(to, from, count, width);
    default: return copy_elements<uint64_t>(to, from, count, width);
  }
}

void zero_columns(Columns to, int64_t count, int64_t width, int64_t itemsize) {
  if (width == 0) return;  // there may be no address
  for (int64_t c = 0; c < count; ++c) {
    char* column = to.data + c * to.column_stride;
    if (to.width_stride == itemsize) {
      std::memset(column, 0, width * itemsize);
    } else {
      for (int64_t d = 0; d < width; ++d) std::memset(column + d * to.width_stride, 0, itemsize);
    }
  }
}

// Call visit(page, slot, offset, count) for every run of a row's columns that lies in one page.
template <typename Visit>
void for_each_run(const Matrix& table, int64_t page_size, int64_t row, int64_t begin, int64_t count, Visit visit) {
  for (int64_t offset = 0; offset < count;) {
    const Place place = locate(table, page_size, row, begin + offset);
    const int64_t run = std::min(count - offset, page_size - place.slot);
    visit(place.page, place.slot, offset, run);
    offset += run;
  }
}

// The first row with a page that does not exist, or that a row before it or the free list has as well.
int64_t first_row_with_a_wrong_page(const Matrix& table, int64_t pages, const FreeList& free_list = {nullptr, 0, 0}) {
  if (table.data == nullptr) return kFits;
  std::vector<bool> taken(pages, false);
  if (free_list.data != nullptr)
    for (int64_t n = 1; n <= at(free_list, 0); ++n) taken[at(free_list, n)] = true;
  for (int64_t row = 0; row < table.rows; ++row) {
    for (int64_t n = 0; n < table.columns; ++n) {
      const int64_t page = at(table, row, n);
      if (page < 0) continue;
      if (page >= pages || taken[page]) return row;
      taken[page] = true;
    }
  }
  return kFits;
}

// A free list that counts what it cannot hold, or holds what does not exist, would lead to writes anywhere.
bool is_sound(const FreeList& free_list) {
  const int64_t pages = free_list.size - 1;
  if (pages < 0 || at(free_list, 0) < 0 || at(free_list, 0) > pages) return false;
  std::vector<bool> seen(pages, false);
  for (int64_t n = 1; n <= at(free_list, 0); ++n) {
    const int64_t page = at(free_list, n);
    if (page < 0 || page >= pages || seen[page]) return false;
    seen[page] = true;
  }
  return true;
}

// No row to blame: the caller looks for what is wrong.
constexpr int64_t kUnsound = 0;

int64_t first_row_that_does_not_fit(const Tensor& cache, const Vector& begins, int64_t count, const Matrix& table) {
  for (int64_t row = 0; row < begins.size; ++row)
    if (at(begins, row) >= 0 && !exists(table, cache.size[0], cache.size[2], row, at(begins, row), count)) return row;
  return kFits;
}

int64_t heads_of(const std::vector<Tensor>& caches) { return caches.empty() ? 0 : caches[0].size[1]; }

int64_t bytes_of_columns(const Tensor& tensor, int64_t columns) { return columns * tensor.size[1] * tensor.size[3] * tensor.itemsize; }

// Heads that lie one behind the other inside a column, as projections make them, are one wide head.
bool heads_are_inside(const Tensor& tensor) {
  return tensor.stride[3] == tensor.itemsize && tensor.stride[1] == tensor.size[3] * tensor.itemsize;
}

Tensor with_one_head(Tensor tensor) {
  tensor.size[3] *= tensor.size[1];
  tensor.size[1] = 1;
  return tensor;
}

// Between columns 0 ... counts[r] - 1 of a dense tensor and columns begins[r] ... of a cache.
template <typename Begin, typename Count>
void transfer(std::array<Tensor, 2> caches, std::array<Tensor, 2> dense, bool to_cache, int64_t rows, Begin begin, Count count, const Matrix& table,
              int threads) {
  // A wide head is cut into runs of columns, so that there is work for many threads.
  constexpr int64_t kPiece = 1 << 17;
  int64_t bytes = 0, longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    longest = std::max(longest, count(row));
    for (const Tensor& cache : caches) bytes += bytes_of_columns(cache, count(row));
  }
  for (int which = 0; which < 2; ++which) {
    if (!heads_are_inside(caches[which]) || !heads_are_inside(dense[which])) continue;
    caches[which] = with_one_head(caches[which]), dense[which] = with_one_head(dense[which]);
  }
  int64_t each[2], pieces[2], items[2];
  for (int which = 0; which < 2; ++which) {
    each[which] = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, caches[which].size[3] * caches[which].itemsize));
    pieces[which] = (longest + each[which] - 1) / each[which];
    items[which] = rows * caches[which].size[1] * pieces[which];
  }
  parallel_for(items[0] + items[1], bytes, threads, [&](int64_t item) {
    const int which = item >= items[0];
    const Tensor &cache = caches[which], &other = dense[which];
    const int64_t heads = cache.size[1], index = item - which * items[0];
    const int64_t first = index % pieces[which] * each[which], head = index / pieces[which] % heads, row = index / pieces[which] / heads;
    const int64_t columns = std::min(each[which], count(row) - first);
    if (columns <= 0) return;
    for_each_run(table, cache.size[2], row, begin(row) + first, columns, [&](int64_t page, int64_t slot, int64_t offset, int64_t run) {
      const Columns stored = columns_at(cache, page, head, slot);
      const Columns plain = columns_at(other, row, head, first + offset);
      copy_columns(to_cache ? stored : plain, to_cache ? plain : stored, run, cache.size[3], cache.itemsize);
    });
  });
}

// Give back the pages that `dropped(row, n)` names, so that taking as many gives them in the order of rows and columns again.
template <typename Dropped>
void give_back(const Matrix& table, const FreeList& free_list, Dropped dropped) {
  int64_t top = at(free_list, 0);
  for (int64_t row = table.rows - 1; row >= 0; --row) {
    for (int64_t n = table.columns - 1; n >= 0; --n) {
      int64_t& page = at(table, row, n);
      if (page < 0 || !dropped(row, n)) continue;
      at(free_list, ++top) = page;
      page = -1;
    }
  }
  at(free_list, 0) = top;
}

// Do `moves` for one head of one cache, `copy(to, from, source)` being told which slot a content came from.
template <typename Copy>
void run_moves(const Move* moves, int64_t count, Copy copy) {
  for (int64_t n = 0; n < count; ++n) copy(moves[n].to, moves[n].from, source_of(moves[n]));
}

}  // namespace

int64_t append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
               int threads) {
  const int64_t window = keys.size[2];
  int64_t bad = first_row_with_a_wrong_page(table, key_cache.size[0]);
  if (bad == kFits) bad = first_row_that_does_not_fit(key_cache, lengths, window, table);
  if (bad != kFits) return bad;
  const auto count = [&](int64_t row) { return at(lengths, row) < 0 ? 0 : window; };
  transfer({key_cache, value_cache}, {keys, values}, true, lengths.size, [&](int64_t row) { return at(lengths, row); }, count, table, threads);
  return kFits;
}

int64_t gather(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
               int threads) {
  if (const int64_t bad = first_row_with_a_wrong_page(table, key_cache.size[0]); bad != kFits) return bad;
  for (int64_t row = 0; row < lengths.size; ++row) {
    const int64_t length = at(lengths, row);
    if (length >= 0 && (length > keys.size[2] || !exists(table, key_cache.size[0], key_cache.size[2], row, 0, length))) return row;
  }
  const auto count = [&](int64_t row) { return std::max<int64_t>(at(lengths, row), 0); };
  transfer({key_cache, value_cache}, {keys, values}, false, lengths.size, [](int64_t) { return 0; }, count, table, threads);
  return kFits;
}

int64_t rollback(Vector lengths, Vector new_lengths, const std::vector<Tensor>& caches, int64_t window, Matrix table, FreeList free_list,
                 int64_t page_size, int threads) {
  const bool paged = free_list.data != nullptr;
  if (paged && !is_sound(free_list)) return kUnsound;
  if (paged)
    if (const int64_t bad = first_row_with_a_wrong_page(table, free_list.size - 1, free_list); bad != kFits) return bad;
  const int64_t capacity = capacity_of(table, page_size);
  const auto rolled_back = [&](int64_t row) { return is_rolled_back(at(lengths, row), at(new_lengths, row)); };
  for (int64_t row = 0; row < lengths.size; ++row)
    if (rolled_back(row) && !may_roll_back(at(lengths, row), at(new_lengths, row), window, capacity)) return row;
  const auto dropped = [&](int64_t row) {
    return rolled_back(row) ? end_of(at(lengths, row), window, capacity) - at(new_lengths, row) : 0;
  };
  const int64_t heads = heads_of(caches);
  int64_t bytes = 0;
  for (const Tensor& cache : caches)
    for (int64_t row = 0; row < lengths.size; ++row) bytes += bytes_of_columns(cache, dropped(row));
  parallel_for(caches.size() * heads, bytes, threads, [&](int64_t item) {
    const Tensor& cache = caches[item / heads];
    const int64_t head = item % heads;
    for (int64_t row = 0; row < lengths.size; ++row) {
      for_each_run(table, cache.size[2], row, at(new_lengths, row), dropped(row), [&](int64_t page, int64_t slot, int64_t, int64_t run) {
        if (page >= 0) zero_columns(columns_at(cache, page, head, slot), run, cache.size[3], cache.itemsize);
      });
    }
  });
  if (paged) {
    give_back(table, free_list, [&](int64_t row, int64_t n) {
      return rolled_back(row) && n >= pages_for(at(new_lengths, row), page_size);
    });
  }
  for (int64_t row = 0; row < lengths.size; ++row)
    if (rolled_back(row)) at(lengths, row) = at(new_lengths, row);
  return kFits;
}

int64_t compact_rows(const std::vector<Tensor>& caches, Vector lengths, Vector rows, int threads) {
  for (int64_t i = 0; i < rows.size; ++i)
    if (at(rows, i) >= lengths.size) return i;
  for (int64_t row = 0; row < lengths.size; ++row)
    for (const Tensor& cache : caches)
      if (at(lengths, row) > cache.size[2]) return row;
  std::vector<int64_t> old_lengths(lengths.size), readers(rows.size);
  std::vector<Move> moves(most_moves(rows.size));
  for (int64_t row = 0; row < lengths.size; ++row) old_lengths[row] = std::max<int64_t>(at(lengths, row), 0);
  const int64_t count = plan_moves([&](int64_t i) { return at(rows, i); }, rows.size, moves.data(), readers.data());

  const int64_t heads = heads_of(caches);
  int64_t bytes = 0;
  for (const Tensor& cache : caches)
    for (int64_t n = 0; n < count; ++n) bytes += bytes_of_columns(cache, old_lengths[source_of(moves[n])]);
  parallel_for(caches.size() * heads, bytes, threads, [&](int64_t item) {
    const Tensor& cache = caches[item / heads];
    const int64_t head = item % heads;
    const int64_t column_bytes = cache.size[3] * cache.itemsize;
    std::vector<char> aside;
    const auto place = [&](int64_t slot) {
      return slot < 0 ? Columns{aside.data(), column_bytes, cache.itemsize} : columns_at(cache, slot, head, 0);
    };
    run_moves(moves.data(), count, [&](int64_t to, int64_t from, int64_t source) {
      if (to == kAside) aside.resize(old_lengths[source] * column_bytes);
      copy_columns(place(to), place(from), old_lengths[source], cache.size[3], cache.itemsize);
    });
  });
  std::vector<int64_t> new_lengths(lengths.size, 0);
  for (int64_t i = 0; i < rows.size; ++i) new_lengths[i] = at(lengths, at(rows, i) < 0 ? i : at(rows, i));
  for (int64_t row = 0; row < lengths.size; ++row) at(lengths, row) = new_lengths[row];
  return kFits;
}

int64_t compact_columns(const std::vector<Tensor>& caches, Vector lengths, Matrix columns, Matrix table, int threads) {
  const int64_t rows = lengths.size, size = columns.columns;
  for (const Tensor& cache : caches) {
    if (const int64_t bad = first_row_with_a_wrong_page(table, cache.size[0]); bad != kFits) return bad;
    for (int64_t row = 0; row < rows; ++row) {
      if (at(lengths, row) < 0) continue;
      for (int64_t c = 0; c < size; ++c) {
        const int64_t column = at(columns, row, c);
        if (column < 0) continue;
        // Past the capacity of anything, and their sum might wrap.
        if (column > INT64_MAX / 4 || at(lengths, row) > INT64_MAX / 4) return row;
        if (!exists(table, cache.size[0], cache.size[2], row, at(lengths, row) + column, 1) ||
            !exists(table, cache.size[0], cache.size[2], row, at(lengths, row) + c, 1))
          return row;
      }
    }
  }
  std::vector<Move> moves(rows * most_moves(size));
  std::vector<int64_t> counts(rows, 0), readers(size);
  int64_t moved = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (at(lengths, row) < 0) continue;
    counts[row] = plan_moves([&](int64_t c) { return at(columns, row, c); }, size, moves.data() + row * most_moves(size), readers.data());
    moved += counts[row];
  }
  const int64_t heads = heads_of(caches);
  int64_t bytes = 0;
  for (const Tensor& cache : caches) bytes += bytes_of_columns(cache, moved);
  parallel_for(caches.size() * heads, bytes, threads, [&](int64_t item) {
    const Tensor& cache = caches[item / heads];
    const int64_t head = item % heads;
    const int64_t column_bytes = cache.size[3] * cache.itemsize;
    std::vector<char> aside(column_bytes);
    for (int64_t row = 0; row < rows; ++row) {
      const auto place = [&](int64_t slot) {
        if (slot < 0) return Columns{aside.data(), column_bytes, cache.itemsize};
        const Place where = locate(table, cache.size[2], row, at(lengths, row) + slot);
        return columns_at(cache, where.page, head, where.slot);
      };
      run_moves(moves.data() + row * most_moves(size), counts[row], [&](int64_t to, int64_t from, int64_t) {
        copy_columns(place(to), place(from), 1, cache.size[3], cache.itemsize);
      });
    }
  });
  return kFits;
}

int64_t reserve(Matrix table, FreeList free_list, Vector lengths, int64_t count, int64_t page_size) {
  if (!is_sound(free_list)) return kUnsound;
  if (const int64_t bad = first_row_with_a_wrong_page(table, free_list.size - 1, free_list); bad != kFits) return bad;
  int64_t left = at(free_list, 0);
  const auto needed = [&](int64_t row) { return pages_for(at(lengths, row) + count, page_size); };
  for (int64_t row = 0; row < table.rows; ++row) {
    if (at(lengths, row) < 0) continue;
    if (at(lengths, row) > table.columns * page_size - count) return row;
    for (int64_t n = 0; n < needed(row); ++n) left -= at(table, row, n) < 0;
    if (left < 0) return row;
  }
  int64_t top = at(free_list, 0);
  for (int64_t row = 0; row < table.rows; ++row) {
    if (at(lengths, row) < 0) continue;
    for (int64_t n = 0; n < needed(row); ++n)
      if (at(table, row, n) < 0) at(table, row, n) = at(free_list, top--);
  }
  at(free_list, 0) = top;
  return kFits;
}

int64_t compact_table(Matrix table, FreeList free_list, Vector lengths, Vector rows) {
  if (!is_sound(free_list)) return kUnsound;
  if (const int64_t bad = first_row_with_a_wrong_page(table, free_list.size - 1, free_list); bad != kFits) return bad;
  std::vector<bool> kept(table.rows, false);
  for (int64_t i = 0; i < rows.size; ++i) {
    const int64_t source = at(rows, i) < 0 ? i : at(rows, i);
    if (source >= table.rows || kept[source]) return i;
    kept[source] = true;
  }
  give_back(table, free_list, [&](int64_t row, int64_t) { return !kept[row]; });
  std::vector<int64_t> old_table(table.rows * table.columns), old_lengths(table.rows);
  for (int64_t row = 0; row < table.rows; ++row) {
    old_lengths[row] = at(lengths, row);
    for (int64_t n = 0; n < table.columns; ++n) old_table[row * table.columns + n] = at(table, row, n);
  }
  for (int64_t row = 0; row < table.rows; ++row) {
    const int64_t source = row >= rows.size ? -1 : at(rows, row) < 0 ? row : at(rows, row);
    at(lengths, row) = source < 0 ? 0 : old_lengths[source];
    for (int64_t n = 0; n < table.columns; ++n) at(table, row, n) = source < 0 ? -1 : old_table[source * table.columns + n];
  }
  return kFits;
}

}  // namespace sjd2::cpu
