// An order in which `slot i := slot source[i]`, meant for all i at once, can be done one after the other and in place.
//
// A slot may be written once nobody still needs its old content. Chains are followed from slots that nobody reads; what is left are
// cycles, and each is opened by putting one slot aside. Any map will do, also one that reads a slot more than once.
#pragma once

#include "addressing.h"

namespace sjd2 {

// `to` is the slot written, or kAside. `from` is the slot read, or ~slot for that slot's content put aside.
struct Move {
  int64_t from;
  int64_t to;
};

constexpr int64_t kAside = -1;

// The slot whose content is moved.
SJD2_HOST_DEVICE inline int64_t source_of(const Move& move) { return move.from < 0 ? ~move.from : move.from; }

SJD2_HOST_DEVICE inline int64_t most_moves(int64_t size) { return size + size / 2; }

// Writes the moves in their order and returns how many there are: at most most_moves(size). source(i) < 0 or == i: slot i stays.
// `readers` is scratch of `size` elements.
template <typename Source>
SJD2_HOST_DEVICE inline int64_t plan_moves(Source source, int64_t size, Move* moves, int64_t* readers) {
  constexpr int64_t kDone = -1;
  int64_t count = 0;
  const auto moves_at_all = [&](int64_t i) { return source(i) >= 0 && source(i) != i; };
  for (int64_t i = 0; i < size; ++i) readers[i] = 0;
  for (int64_t i = 0; i < size; ++i)
    if (moves_at_all(i) && source(i) < size) ++readers[source(i)];
  // A slot that stays counts as done; it may have readers until the end.
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t slot = i; slot < size && readers[slot] == 0 && moves_at_all(slot);) {
      const int64_t from = source(slot);
      moves[count++] = {from, slot};
      readers[slot] = kDone;
      if (from < size) --readers[from];
      slot = from;
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    if (readers[i] <= 0 || !moves_at_all(i)) continue;
    moves[count++] = {i, kAside};
    int64_t slot = i;
    for (; source(slot) != i; slot = source(slot)) {
      moves[count++] = {source(slot), slot};
      readers[slot] = kDone;
    }
    moves[count++] = {~i, slot};
    readers[slot] = kDone;
  }
  return count;
}

}  // namespace sjd2
