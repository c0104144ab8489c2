// Every map of up to five slots to up to six sources, and large random ones: done move by move, in place, the result is that of all at once.
#include <random>
#include <vector>

#include "../moves.h"
#include "check.h"

namespace {

void check_map(const std::vector<int64_t>& source, int64_t slots) {
  const int64_t size = static_cast<int64_t>(source.size());
  std::vector<int64_t> content(slots), expected(slots), readers(size);
  for (int64_t i = 0; i < slots; ++i) content[i] = expected[i] = 1000 + i;
  for (int64_t i = 0; i < size; ++i)
    if (source[i] >= 0) expected[i] = 1000 + source[i];
  std::vector<sjd2::Move> moves(sjd2::most_moves(size));
  const int64_t count = sjd2::plan_moves([&](int64_t i) { return source[i]; }, size, moves.data(), readers.data());
  CHECK(count <= sjd2::most_moves(size));
  int64_t aside = 0;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t value = moves[n].from < 0 ? aside : content[moves[n].from];
    CHECK(value == 1000 + sjd2::source_of(moves[n]));
    (moves[n].to == sjd2::kAside ? aside : content[moves[n].to]) = value;
  }
  CHECK(content == expected);
}

}  // namespace

int main() {
  for (int64_t size = 0; size <= 5; ++size) {
    const int64_t slots = size + 1, choices = slots + 1;
    int64_t maps = 1;
    for (int64_t i = 0; i < size; ++i) maps *= choices;
    for (int64_t map = 0; map < maps; ++map) {
      std::vector<int64_t> source(size);
      int64_t rest = map;
      for (int64_t& from : source) {
        from = rest % choices - 1;
        rest /= choices;
      }
      check_map(source, slots);
    }
  }
  std::mt19937_64 random(1);
  for (int64_t round = 0; round < 2000; ++round) {
    const int64_t size = 1 + static_cast<int64_t>(random() % 200);
    std::vector<int64_t> source(size);
    for (int64_t i = 0; i < size; ++i) source[i] = i;
    for (int64_t i = size - 1; i > 0; --i) std::swap(source[i], source[random() % (i + 1)]);
    check_map(source, size);
    for (int64_t& from : source)
      if (random() % 3 == 0) from = static_cast<int64_t>(random() % (size + 3)) - 1;
    check_map(source, size + 2);
  }
  return 0;
}
