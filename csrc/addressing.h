// Where a column of a row lies, and whether a range of them does. Shared by the CPU and the GPU.
#pragma once

#include "kv_cache.h"

#ifdef __CUDACC__
#define SJD2_HOST_DEVICE __host__ __device__
#else
#define SJD2_HOST_DEVICE
#endif

namespace sjd2 {

SJD2_HOST_DEVICE inline int64_t& at(const Vector& vector, int64_t index) { return vector.data[index * vector.stride]; }

SJD2_HOST_DEVICE inline int64_t& at(const Matrix& matrix, int64_t row, int64_t column) {
  return matrix.data[row * matrix.row_stride + column * matrix.column_stride];
}

SJD2_HOST_DEVICE inline int64_t pages_for(int64_t columns, int64_t page_size) { return (columns + page_size - 1) / page_size; }

struct Place {
  int64_t page;
  int64_t slot;
};

SJD2_HOST_DEVICE inline Place locate(const Matrix& table, int64_t page_size, int64_t row, int64_t column) {
  if (table.data == nullptr) return {row, column};
  return {at(table, row, column / page_size), column % page_size};
}

// Columns begin ... end - 1 of a row exist in a cache of `pages` pages. Compares without adding: lengths may be any int64.
SJD2_HOST_DEVICE inline bool exists(const Matrix& table, int64_t pages, int64_t page_size, int64_t row, int64_t begin, int64_t count) {
  const int64_t capacity = table.data == nullptr ? page_size : table.columns * page_size;
  if (begin < 0 || count > capacity || begin > capacity - count) return false;
  if (table.data == nullptr || count == 0) return true;
  for (int64_t n = begin / page_size; n <= (begin + count - 1) / page_size; ++n) {
    const int64_t page = at(table, row, n);
    if (page < 0 || page >= pages) return false;
  }
  return true;
}

// Columns that a row of any length can have; 0 pages of 0 columns stand for a cache that is not shown.
SJD2_HOST_DEVICE inline int64_t capacity_of(const Matrix& table, int64_t page_size) {
  if (page_size < 0) return INT64_MAX;
  return table.data == nullptr ? page_size : table.columns * page_size;
}

// Rolling back skips rows whose old or new length is negative ...
SJD2_HOST_DEVICE inline bool is_rolled_back(int64_t length, int64_t new_length) { return length >= 0 && new_length >= 0; }

// ... and must not reach behind the `window` columns that follow the old length, nor behind the cache.
SJD2_HOST_DEVICE inline bool may_roll_back(int64_t length, int64_t new_length, int64_t window, int64_t capacity) {
  return new_length <= capacity && new_length - window <= length;
}

// One behind the last column that may have been written.
SJD2_HOST_DEVICE inline int64_t end_of(int64_t length, int64_t window, int64_t capacity) {
  return length > capacity - window ? capacity : length + window;
}

}  // namespace sjd2
