#include "draw.h"

#include <algorithm>
#include <limits>

#include "../philox.h"

namespace sjd2::cpu {
namespace {

constexpr int64_t kBlock = 1024;

// The first index of masses[first ... last - 1] whose running sum exceeds `target`, at most the one at which the sum reaches its total. Sums are
// kept in double and looked at in float, as PyTorch does it on a CPU.
template <typename Mass>
int64_t first_above(int64_t first, int64_t last, float target, const Mass& mass) {
  double running = 0;
  int64_t full = first;
  float before = 0;
  for (int64_t i = first; i < last; ++i) {
    running += mass(i);
    const float now = static_cast<float>(running);
    if (now > target) return i;
    if (now > before) full = i;
    before = now;
  }
  return full;
}

}  // namespace

int64_t inverse_cdf(const std::vector<int64_t>& ids, const std::vector<float>& masses, int64_t vocabulary, float uniform) {
  const int64_t count = static_cast<int64_t>(ids.size());
  if (count == 0) return 0;
  const auto mass = [&](int64_t i) { return masses[i]; };
  int64_t first = 0, last = count;
  double before = 0, total = 0;
  float target;
  if (vocabulary <= kBlock) {
    for (const float one : masses) total += one;
    target = uniform * static_cast<float>(total);
  } else {
    // Where each block of ids begins in the list, and what it sums to.
    thread_local std::vector<int64_t> begin;
    thread_local std::vector<float> sums;
    begin.clear();
    sums.clear();
    for (int64_t i = 0; i < count;) {
      const int64_t block = ids[i] / kBlock;
      double sum = 0;
      begin.push_back(i);
      for (; i < count && ids[i] / kBlock == block; ++i) sum += masses[i];
      sums.push_back(static_cast<float>(sum));
    }
    begin.push_back(count);
    for (const float sum : sums) total += sum;
    const float whole = uniform * static_cast<float>(total);
    const int64_t chosen = first_above(0, static_cast<int64_t>(sums.size()), whole, [&](int64_t n) { return sums[n]; });
    for (int64_t n = 0; n < chosen; ++n) before += sums[n];
    first = begin[chosen];
    last = begin[chosen + 1];
    target = whole - static_cast<float>(before);
  }
  return ids[first_above(first, last, target, mass)];
}

int64_t frozen_draw(const std::vector<int64_t>& ids, const std::vector<float>& log_p, int64_t seed, int64_t position) {
  int64_t best = 0, block = -1;
  float highest = -std::numeric_limits<float>::infinity();
  std::array<uint32_t, 4> words{};
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] / 4 != block) {  // one block of words serves four ids
      block = ids[i] / 4;
      words = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(position), 0, kGumbelWords}, seed);
    }
    const float value = log_p[i] + gumbel_from_uniform(uniform_from_bits(words[ids[i] % 4]));
    if (value > highest) {
      highest = value;
      best = ids[i];
    }
  }
  return best;
}

}  // namespace sjd2::cpu
