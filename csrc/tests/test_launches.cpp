// What random calls of csrc/cuda do not reach: grids that are full, block tables that are broken, and where the work is put.
#include <stdexcept>
#include <string>

#include "check.h"
#include "cuda_runtime.h"
#include "random_state.h"

namespace {

using namespace sjd2;
using namespace sjd2::tests;

// More rows than a grid has blocks along y or z: blocks take several.
[[maybe_unused]] void more_rows_than_blocks() {
  Random random(5);
  const int64_t rows = 65535 + 70;
  State state;
  state.page_size = 3, state.window = 2;
  std::vector<int64_t> lengths(rows, -1), to(rows, -1);
  for (const int64_t row : {int64_t{0}, int64_t{1}, int64_t{65534}, rows - 1}) lengths[row] = 1, to[row] = 2;
  lengths[65535] = 3, to[65535] = -1;  // does not fit, and the block that has it had one that does
  state.lengths = indices_of(random, lengths), state.new_lengths = indices_of(random, to);
  for (int n = 0; n < 2; ++n) state.caches.push_back(random_cache(random, {rows, 1, 3, 1}, 1));
  with_dense(random, state, 2);
  state.columns = random_indices(random, rows, 2);
  for (int64_t row = 0; row < rows; ++row) state.columns.at(row, 0) = 1, state.columns.at(row, 1) = 0;
  state.flags.assign(2 * rows, 0);
  State expected = state;
  const auto all_on_the_cpu = [](State& s) {
    const Tensor keys = s.caches[0].view(), values = s.caches[1].view();
    const Matrix none = s.block_table();
    CHECK(cpu::append(keys, values, s.keys.view(), s.values.view(), s.lengths.vector(), none, 1) == kFits);
    CHECK(cpu::compact_columns({keys}, s.lengths.vector(), s.columns.matrix(), none, 1) == kFits);
    CHECK(cpu::rollback(s.lengths.vector(), s.new_lengths.vector(), {keys}, 2, none, s.free_pages(), 3, 1) == kFits);
  };
  const auto all_by_cuda = [&](State& s) {
    const Tensor keys = s.caches[0].view(), values = s.caches[1].view();
    const Matrix none = s.block_table();
    auto scratch = workspace(rows, 2, rows);
    cuda::append(keys, values, s.keys.view(), s.values.view(), s.lengths.vector(), none, s.overflow(), kQueue);
    cuda::compact_columns({keys}, s.lengths.vector(), s.columns.matrix(), none, scratch.data(), s.overflow(), kQueue);
    cuda::rollback(s.lengths.vector(), s.new_lengths.vector(), {keys}, 2, none, s.free_pages(), 3, s.overflow(), kQueue);
  };
  expected.lengths[65535] = -1;
  all_on_the_cpu(expected);
  expected.mark(65535), expected.lengths[65535] = 3;
  emulated::set_order(emulated::Order::kAscending);
  all_by_cuda(state);
  CHECK(state == expected);
}

// A GPU does not look whether a table has a page twice. What comes of it is nobody's concern, but nothing may be written behind the free list.
void more_pages_come_back_than_there_are() {
  for (const bool rows_are_dropped : {false, true}) {
    std::vector<int64_t> table{1, 1, 0, 1}, free_list{1, 0, -5}, lengths{2, 2}, to{0, 0};
    std::vector<int64_t> scratch = workspace(1, 0, 2);
    const Matrix matrix{table.data(), 2, 2, 2, 1};
    const Flags nobody_asks{nullptr, 0};
    if (rows_are_dropped) {
      cuda::compact_table(matrix, {free_list.data(), 3, 1}, {lengths.data(), 2, 1}, {nullptr, 0, 1}, scratch.data(), nobody_asks, kQueue);
    } else {
      cuda::rollback({lengths.data(), 2, 1}, {to.data(), 2, 1}, {}, 2, matrix, {free_list.data(), 3, 1}, 1, nobody_asks, kQueue);
    }
    CHECK(free_list[0] == 2 && free_list.size() == 3);
    CHECK((table == std::vector<int64_t>(4, -1) && lengths == to));
  }
}

// Everything goes to the stream and the device that were named, the device is again what it was, and caches share a launch.
void launches_go_where_they_are_told() {
  Random random(9);
  int there;
  const cuda::Queue queue{1, &there};
  const auto launched = [&](auto call) {
    emulated::launches().clear();
    call();
    int device = -1;
    CHECK(cudaGetDevice(&device) == cudaSuccess && device == 0);
    for (const emulated::Launched& one : emulated::launches()) CHECK(one.device == 1 && one.stream == &there);
    return emulated::launches().size();
  };
  State state = random_state(random, false, 1, true, 0, false);
  const auto compact = [&] {
    auto scratch = workspace(1, 1, state.lengths.size());
    int64_t row = 0;
    cuda::compact_rows(state.views(), state.lengths.vector(), {&row, 1, 1}, scratch.data(), state.overflow(), queue);
  };
  const int64_t rows = state.lengths.size();
  state.caches.assign(57, {std::vector<char>(4 * rows), {nullptr, {rows, 1, 1, 2}, {4, 4, 4, 2}, 2}, 0});
  CHECK(launched(compact) == 3);  // the plan, 56 caches, 1 cache
  state.caches.pop_back();
  CHECK(launched(compact) == 2);
  State paged = random_state(random, true, 1, true, 1, false);
  with_dense(random, paged, 1);
  CHECK(launched([&] {
          cuda::append(paged.caches[0].view(), paged.caches[1].view(), paged.keys.view(), paged.values.view(), paged.lengths.vector(),
                       paged.block_table(), paged.overflow(), queue);
        }) == 1);
  CHECK(launched([&] {
          paged.new_lengths = paged.lengths;
          cuda::rollback(paged.lengths.vector(), paged.new_lengths.vector(), paged.views(), 1, paged.block_table(), paged.free_pages(),
                         paged.page_size, paged.overflow(), queue);
        }) >= 2);
  bool refused = false;
  try {
    cuda::reserve(paged.table.matrix(), paged.free_list.vector(), paged.lengths.vector(), 1, paged.page_size, paged.overflow(), {7, nullptr});
  } catch (const std::runtime_error& error) {
    refused = std::string(error.what()) == "cudaSetDevice: invalid device";
  }
  CHECK(refused);
}

}  // namespace

int main() {
  more_pages_come_back_than_there_are();
  launches_go_where_they_are_told();
#ifndef __SANITIZE_ADDRESS__  // too slow: a hundred million threads
  more_rows_than_blocks();
#endif
  return 0;
}
