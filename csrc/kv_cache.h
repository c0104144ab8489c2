// KV-cache operations on raw memory: views in, nothing out but the first row that does not fit. Nothing here knows PyTorch.
//
// A dense cache is [rows, heads, columns, width]; a paged one is a pool of pages of that shape, and a block table says which
// pages hold a row's columns, in order. Every operation that takes a table works on both: without one, page r is row r.
//
// Element type does not matter: elements of 1, 2, 4 or 8 bytes are moved, never looked at. A negative length or index skips its
// row or column. A row that does not fit is left alone: on the CPU the call then writes nothing at all and returns that row, on a
// GPU, where the host cannot look, the row is marked in `overflow`.
//
// Key and value caches, and all caches of a list, have the same pages, heads and columns; only their widths may differ.
#pragma once

#include <cstdint>
#include <vector>

namespace sjd2 {

// [pages, heads, columns, width], strides in bytes.
struct Tensor {
  char* data;
  int64_t size[4];
  int64_t stride[4];
  int64_t itemsize;
};

// int64 [size], stride in elements.
struct Vector {
  int64_t* data;
  int64_t size;
  int64_t stride;
};

// int64 [rows, columns], strides in elements. As a block table: page of a row's n-th run of columns, -1 for none; no data means dense.
struct Matrix {
  int64_t* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

// bool [rows] that a GPU operation sets for rows it had to leave alone; no data means nobody asks.
struct Flags {
  bool* data;
  int64_t stride;
};

// A stack of free pages: pages.data[0] is their number, the rest holds them, the next one to be taken last. It has room for all pages.
using FreeList = Vector;

constexpr int64_t kFits = -1;

namespace cpu {

// Write column w of `keys` and `values` to column lengths[r] + w of row r.
int64_t append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
               int threads);

// Copy columns 0 ... lengths[r] - 1 of row r to the dense `keys` and `values`.
int64_t gather(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
               int threads);

// lengths := new_lengths, at most lengths + window; zero the columns dropped from `caches`; give back the pages no longer needed, if
// there is a free list. `page_size` is −1 if there is no dense cache whose capacity matters.
int64_t rollback(Vector lengths, Vector new_lengths, const std::vector<Tensor>& caches, int64_t window, Matrix table, FreeList free_list,
                 int64_t page_size, int threads);

// Row i := row rows[i], for all i at once, in place; rows behind the last become empty.
int64_t compact_rows(const std::vector<Tensor>& caches, Vector lengths, Vector rows, int threads);

// Column lengths[r] + c := column lengths[r] + columns[r, c], for all c at once, in place.
int64_t compact_columns(const std::vector<Tensor>& caches, Vector lengths, Matrix columns, Matrix table, int threads);

// Let the table of every row reach column lengths[r] + count, with pages from the free list: rows in order, lower columns first.
int64_t reserve(Matrix table, FreeList free_list, Vector lengths, int64_t count, int64_t page_size);

// compact_rows of a table: rows move, no column does; pages of rows that are dropped are given back.
int64_t compact_table(Matrix table, FreeList free_list, Vector lengths, Vector rows);

}  // namespace cpu

namespace cuda {

// Where to run: a device index, and a stream (a cudaStream_t) of that device.
struct Queue {
  int device;
  void* stream;
};

// Elements of int64 scratch that the compactions need for `maps` maps of `size` entries each over `rows` rows.
int64_t workspace_size(int64_t maps, int64_t size, int64_t rows);

void append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
            Flags overflow, Queue queue);
void gather(const Tensor& key_cache, const Tensor& value_cache, const Tensor& keys, const Tensor& values, Vector lengths, Matrix table,
            Flags overflow, Queue queue);
void rollback(Vector lengths, Vector new_lengths, const std::vector<Tensor>& caches, int64_t window, Matrix table, FreeList free_list,
              int64_t page_size, Flags overflow, Queue queue);
void compact_rows(const std::vector<Tensor>& caches, Vector lengths, Vector rows, int64_t* workspace, Flags overflow, Queue queue);
void compact_columns(const std::vector<Tensor>& caches, Vector lengths, Matrix columns, Matrix table, int64_t* workspace, Flags overflow,
                     Queue queue);
void reserve(Matrix table, FreeList free_list, Vector lengths, int64_t count, int64_t page_size, Flags overflow, Queue queue);
void compact_table(Matrix table, FreeList free_list, Vector lengths, Vector rows, int64_t* workspace, Flags overflow, Queue queue);

}  // namespace cuda
}  // namespace sjd2
