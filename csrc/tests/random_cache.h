// Random tensors and index vectors as views show them: any order of strides, gaps, offsets, and exactly as much memory as they reach.
#pragma once

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "../addressing.h"

namespace sjd2::tests {

class Random {
 public:
  explicit Random(uint64_t seed) : source_(seed) {}
  // low ... high, both included.
  int64_t in(int64_t low, int64_t high) { return low + static_cast<int64_t>(source_() % static_cast<uint64_t>(high - low + 1)); }
  bool one_in(int64_t times) { return in(1, times) == 1; }
  template <typename Item>
  void shuffle(std::vector<Item>& items) {
    std::shuffle(items.begin(), items.end(), source_);
  }

 private:
  std::mt19937_64 source_;
};

// Owns what a Tensor views; a copy is another one of the same layout.
struct Cache {
  std::vector<char> bytes;
  Tensor layout{};
  int64_t offset = 0;

  Tensor view() {
    Tensor tensor = layout;
    tensor.data = bytes.data() + offset;
    return tensor;
  }
  bool operator==(const Cache& other) const { return bytes == other.bytes; }
};

inline Cache random_cache(Random& random, std::array<int64_t, 4> size, int64_t itemsize) {
  Cache cache;
  std::vector<int> order{3, 2, 1, 0};  // dimensions from the innermost on
  const int64_t kind = random.in(0, 5);
  if (kind == 1) order = {3, 1, 2, 0};  // heads inside columns, as projections make them
  if (kind == 2) random.shuffle(order);
  const bool gaps = random.one_in(3);
  // Elements from one index to the next: all that lie further inside, and perhaps some that are nobody's.
  int64_t step = kind == 3 ? random.in(1, 3) : 1, reach = 1;
  for (const int d : order) {
    if (gaps && d != order[0]) step += random.in(0, 3);
    cache.layout.size[d] = size[d];
    // The stride of a dimension of size 1 means nothing and may be anything.
    cache.layout.stride[d] = (size[d] == 1 && random.one_in(2) ? random.in(0, 40) : step) * itemsize;
    reach += std::max<int64_t>(size[d] - 1, 0) * step;
    step *= std::max<int64_t>(size[d], 1);
  }
  cache.layout.itemsize = itemsize;
  cache.offset = random.one_in(3) ? random.in(1, 9) * itemsize : 0;
  const bool empty = size[0] * size[1] * size[2] * size[3] == 0;
  cache.bytes.resize(empty ? cache.offset : cache.offset + reach * itemsize);
  for (char& byte : cache.bytes) byte = static_cast<char>(random.in(-128, 127));
  return cache;
}

// int64 with gaps between rows or elements, which must stay what they are.
struct Indices {
  std::vector<int64_t> values;
  Matrix layout{};

  Matrix matrix() {
    Matrix view = layout;
    view.data = values.data();
    return view;
  }
  Vector vector() { return {values.data(), layout.columns, layout.column_stride}; }
  int64_t& operator[](int64_t column) { return values[column * layout.column_stride]; }
  int64_t& at(int64_t row, int64_t column) { return values[row * layout.row_stride + column * layout.column_stride]; }
  int64_t size() const { return layout.columns; }
  bool operator==(const Indices& other) const { return values == other.values; }
};

inline Indices random_indices(Random& random, int64_t rows, int64_t columns) {
  Indices indices;
  const int64_t gap = random.one_in(3) ? 2 : 1;
  indices.layout = {nullptr, rows, columns, columns * gap + (gap - 1), gap};
  if (random.one_in(4)) indices.layout.row_stride = gap, indices.layout.column_stride = rows * gap;
  indices.values.assign(std::max<int64_t>(rows * (columns * gap + gap), 1), 77);
  return indices;
}

// `values` as a vector.
inline Indices indices_of(Random& random, const std::vector<int64_t>& values) {
  Indices indices = random_indices(random, 1, static_cast<int64_t>(values.size()));
  for (int64_t n = 0; n < indices.size(); ++n) indices[n] = values[n];
  return indices;
}

}  // namespace sjd2::tests
