// The sources of csrc/cuda, run thread by thread on the CPU, against csrc/cpu: random calls of every operation, in several orders of threads
// and blocks, with rows that do not fit. What the CPU refuses as a whole, a GPU leaves out and marks; so the CPU is asked again without it.
#include <cstdio>

#include "check.h"
#include "cuda_runtime.h"
#include "random_state.h"

namespace {

using namespace sjd2;
using namespace sjd2::tests;
using emulated::Order;

// Of every operation. Sanitizers make a change of threads many times slower.
#ifdef __SANITIZE_ADDRESS__
constexpr int kCalls = 25;
#else
constexpr int kCalls = 200;
#endif

// Ask the CPU until it does the call, leaving out what it refuses by setting `skip` of that row to -1. Returns `skip` as it was.
template <typename Call>
Indices leaving_out(State& state, Indices State::*skip, Call call) {
  const Indices before = state.*skip;
  for (int64_t row; (row = call()) != kFits;) {
    CHECK((state.*skip)[row] >= 0);  // it must not refuse the same row again
    state.mark(row), (state.*skip)[row] = -1;
  }
  return before;
}

// `run` on copies of `state` in every order must give `expected`.
template <typename Run>
void check_orders(const char* what, uint64_t seed, const State& state, const State& expected, Run run) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    State got = state;
    emulated::set_order(order, seed);
    run(got);
    if (!(got == expected)) std::fprintf(stderr, "%s: call %d, order %d\n", what, static_cast<int>(seed), static_cast<int>(order));
    CHECK(got == expected);
  }
}

void append(uint64_t seed) {
  Random random(seed);
  // No columns fit anywhere, to a GPU; the CPU looks at the lengths all the same.
  const int64_t window = random.in(0, 5);
  State state = random_state(random, random.one_in(2), 1, true, window, window > 0 && random.one_in(2));
  with_dense(random, state, state.window);
  State expected = state;
  expected.lengths = leaving_out(expected, &State::lengths, [&] {
    return cpu::append(expected.caches[0].view(), expected.caches[1].view(), expected.keys.view(), expected.values.view(),
                       expected.lengths.vector(), expected.block_table(), 1);
  });
  check_orders("append", seed, state, expected, [](State& s) {
    cuda::append(s.caches[0].view(), s.caches[1].view(), s.keys.view(), s.values.view(), s.lengths.vector(), s.block_table(), s.overflow(),
                 kQueue);
  });
}

void gather(uint64_t seed) {
  Random random(seed);
  State state = random_state(random, random.in(1, 4) > 1, 1, true, 0, random.one_in(2));
  with_dense(random, state, random.one_in(3) ? random.in(0, 3) : state.page_size * 4);
  State expected = state;
  expected.lengths = leaving_out(expected, &State::lengths, [&] {
    return cpu::gather(expected.caches[0].view(), expected.caches[1].view(), expected.keys.view(), expected.values.view(),
                       expected.lengths.vector(), expected.block_table(), 1);
  });
  check_orders("gather", seed, state, expected, [](State& s) {
    cuda::gather(s.caches[0].view(), s.caches[1].view(), s.keys.view(), s.values.view(), s.lengths.vector(), s.block_table(), s.overflow(),
                 kQueue);
  });
}

void rollback(uint64_t seed) {
  Random random(seed);
  const bool wrong = random.one_in(2);
  State state = random_state(random, random.one_in(2), random.in(0, 2), false, random.in(0, 5), false);
  std::vector<int64_t> to;
  const int64_t capacity = capacity_of(state.block_table(), state.page_size);
  for (int64_t row = 0; row < state.lengths.size(); ++row)
    to.push_back(random_length(random, std::min(std::max<int64_t>(state.lengths[row], 0) + state.window, capacity), wrong));
  state.new_lengths = indices_of(random, to);
  const int64_t page_size = state.paged || !state.caches.empty() || random.one_in(2) ? state.page_size : -1;
  State expected = state;
  expected.new_lengths = leaving_out(expected, &State::new_lengths, [&] {
    return cpu::rollback(expected.lengths.vector(), expected.new_lengths.vector(), expected.views(), expected.window, expected.block_table(),
                         expected.free_pages(), page_size, 1);
  });
  check_orders("rollback", seed, state, expected, [=](State& s) {
    cuda::rollback(s.lengths.vector(), s.new_lengths.vector(), s.views(), s.window, s.block_table(), s.free_pages(), page_size, s.overflow(), kQueue);
  });
}

void compact_rows(uint64_t seed) {
  Random random(seed);
  const bool wrong = random.one_in(2);
  // Now and then more caches than one launch takes.
  State state = random_state(random, false, random.one_in(20) ? 31 : random.in(0, 2), false, 0, false);
  const int64_t rows = state.lengths.size();
  std::vector<int64_t> sources(random.in(0, rows));
  for (int64_t& source : sources) source = wrong && random.one_in(4) ? random_length(random, rows, true) : random.in(-1, rows - 1);
  state.rows = indices_of(random, sources);
  State expected = state;
  expected.rows = leaving_out(expected, &State::rows, [&] {
    return cpu::compact_rows(expected.views(), expected.lengths.vector(), expected.rows.vector(), 1);
  });
  check_orders("compact_rows", seed, state, expected, [](State& s) {
    auto scratch = workspace(1, s.rows.size(), s.lengths.size());
    cuda::compact_rows(s.views(), s.lengths.vector(), s.rows.vector(), scratch.data(), s.overflow(), kQueue);
  });
}

void compact_columns(uint64_t seed) {
  Random random(seed);
  const bool wrong = random.one_in(2);
  const int64_t count = random.in(0, 6);
  State state = random_state(random, random.one_in(2), random.one_in(20) ? 31 : random.in(1, 2), false, count, wrong);
  state.columns = random_indices(random, state.lengths.size(), count);
  for (int64_t row = 0; row < state.lengths.size(); ++row)
    for (int64_t c = 0; c < count; ++c)
      state.columns.at(row, c) = wrong && random.one_in(9) ? random_length(random, count, true) : random.in(-1, count - 1);
  State expected = state;
  expected.lengths = leaving_out(expected, &State::lengths, [&] {
    return cpu::compact_columns(expected.views(), expected.lengths.vector(), expected.columns.matrix(), expected.block_table(), 1);
  });
  check_orders("compact_columns", seed, state, expected, [](State& s) {
    auto scratch = workspace(s.columns.layout.rows, s.columns.size(), s.lengths.size());
    cuda::compact_columns(s.views(), s.lengths.vector(), s.columns.matrix(), s.block_table(), scratch.data(), s.overflow(), kQueue);
  });
}

void reserve(uint64_t seed) {
  Random random(seed);
  State state = random_state(random, true, 0, true, 0, random.one_in(2));
  const int64_t count = random.in(0, 9), page_size = state.page_size, entries = state.table.size();
  State expected = state;
  const Indices lengths = state.lengths;
  // A row that finds too few pages left by those before it, also by those that found too few themselves, takes none.
  int64_t asked_for = 0;
  for (int64_t row = 0; row < state.lengths.size(); ++row) {
    const int64_t length = state.lengths[row];
    int64_t missing = 0;
    const bool fits = length <= entries * page_size - count;
    for (int64_t n = 0; length >= 0 && fits && n < pages_for(length + count, page_size); ++n) missing += state.table.at(row, n) < 0;
    asked_for += missing;
    if (length < 0 || (fits && (missing == 0 || asked_for <= state.free_list[0]))) continue;
    expected.mark(row), expected.lengths[row] = -1;
  }
  CHECK(cpu::reserve(expected.table.matrix(), expected.free_list.vector(), expected.lengths.vector(), count, page_size) == kFits);
  expected.lengths = lengths;
  check_orders("reserve", seed, state, expected, [=](State& s) {
    cuda::reserve(s.table.matrix(), s.free_list.vector(), s.lengths.vector(), count, page_size, s.overflow(), kQueue);
  });
}

void compact_table(uint64_t seed) {
  Random random(seed);
  State state = random_state(random, true, 0, true, random.in(0, 3), false);
  const int64_t rows = state.lengths.size();
  const bool wrong = random.one_in(2);
  std::vector<int64_t> sources;
  for (int64_t row = 0; row < rows; ++row) sources.push_back(row);
  random.shuffle(sources);
  sources.resize(random.in(0, rows));
  for (int64_t i = 0; i < static_cast<int64_t>(sources.size()); ++i) {
    if (sources[i] == i && random.one_in(2)) sources[i] = -1;
    if (wrong && random.one_in(4)) sources[i] = random_length(random, rows, true);
  }
  state.rows = indices_of(random, sources);
  State expected = state;
  // Slots that are refused become empty. The CPU has no word for that: it gets the rows that are moved, in slots of their own, and where those
  // lie afterwards is changed by hand.
  std::vector<bool> taken(rows, false);
  std::vector<int64_t> slots, moved;
  for (int64_t i = 0; i < static_cast<int64_t>(sources.size()); ++i) {
    const int64_t source = sources[i] < 0 ? i : sources[i];
    if (source >= rows || taken[source]) {
      expected.mark(i);
      continue;
    }
    taken[source] = true, slots.push_back(i), moved.push_back(source);
  }
  Indices dense = indices_of(random, moved);
  CHECK(cpu::compact_table(expected.table.matrix(), expected.free_list.vector(), expected.lengths.vector(), dense.vector()) == kFits);
  for (int64_t n = static_cast<int64_t>(slots.size()) - 1; n >= 0; --n) {
    if (slots[n] == n) continue;
    std::swap(expected.lengths[slots[n]], expected.lengths[n]);
    for (int64_t c = 0; c < state.table.size(); ++c) std::swap(expected.table.at(slots[n], c), expected.table.at(n, c));
  }
  check_orders("compact_table", seed, state, expected, [](State& s) {
    auto scratch = workspace(1, s.rows.size(), s.lengths.size());
    cuda::compact_table(s.table.matrix(), s.free_list.vector(), s.lengths.vector(), s.rows.vector(), scratch.data(), s.overflow(), kQueue);
  });
}

}  // namespace

int main() {
  for (const auto operation : {append, gather, rollback, compact_rows, compact_columns, reserve, compact_table})
    for (uint64_t seed = 0; seed < kCalls; ++seed) operation(seed);
  return 0;
}
