// Random words, draws, and calls of verify and sample with every rule, type and odd logit: results stay in range and are the same on one thread and several.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../cpu/draw.h"
#include "../philox.h"
#include "../sampling.h"
#include "check.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void random_words() {
  // The known answers of the algorithm's authors.
  CHECK((sjd2::philox({0, 0, 0, 0}, 0) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((sjd2::philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, -1) ==
         std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(sjd2::uniform_from_bits(0) > 0);
  CHECK(sjd2::uniform_from_bits(0xffffffff) < 1);
}

void draws() {
  CHECK(sjd2::cpu::inverse_cdf({}, {}, 5, 0.5F) == 0);
  CHECK(sjd2::cpu::inverse_cdf({1, 3}, {0.25F, 0.75F}, 5, 0.2F) == 1);
  CHECK(sjd2::cpu::inverse_cdf({1, 3}, {0.25F, 0.75F}, 5, 0.25F) == 3);
  CHECK(sjd2::cpu::inverse_cdf({1, 3, 4}, {0.25F, 0.75F, 0.0F}, 5, 1.0F) == 3);  // never one without mass
  CHECK(sjd2::cpu::inverse_cdf({7, 2000, 5000}, {1.0F, 1.0F, 2.0F}, 6000, 0.3F) == 2000);
  CHECK(sjd2::cpu::inverse_cdf({7, 2000, 5000}, {1.0F, 1.0F, 2.0F}, 6000, 0.9F) == 5000);
}

struct Call {
  int64_t rows, slots, ids;
  std::vector<float> logits, last;
  std::vector<float> scale, temperature, top_p;
  std::vector<int64_t> top_k, drafts, q_row, forced, remaining, seeds, iteration, position, cut;
  std::vector<float> threshold, logsumexp;

  Call(int64_t rows, int64_t slots, int64_t ids, std::mt19937_64& random) : rows(rows), slots(slots), ids(ids) {
    const auto number = [&](int64_t bound) { return static_cast<int64_t>(random() % bound); };
    const auto logit = [&] { return static_cast<float>(number(4000)) / 500 - 4; };
    for (int64_t i = 0; i < 2 * rows * slots * ids; ++i) logits.push_back(logit());
    for (int64_t i = 0; i < rows * slots * ids; ++i) last.push_back(logit());
    if (number(2) == 0) logits[number(logits.size())] = -kInfinity;
    if (number(4) == 0) logits[number(logits.size())] = kInfinity;
    if (number(4) == 0) logits[number(logits.size())] = std::nanf("");
    if (number(4) == 0) std::fill_n(logits.begin(), ids, -kInfinity);
    for (int64_t row = 0; row < rows; ++row) {
      scale.push_back(static_cast<float>(number(3)));
      temperature.push_back(0.5F + static_cast<float>(number(3)));
      top_p.push_back(number(2) == 0 ? 1.0F : 0.4F);
      top_k.push_back(number(ids + 2));
      remaining.push_back(number(slots + 2));
      seeds.push_back(static_cast<int64_t>(random()));
      iteration.push_back(number(100));
      position.push_back(number(1000));
    }
    for (int64_t i = 0; i < rows * slots; ++i) {
      drafts.push_back(number(ids));
      q_row.push_back(number(slots + 3) - 3);
      forced.push_back(number(5) == 0 ? number(ids) : -1);
      threshold.push_back(-kInfinity);
      cut.push_back(ids);
      logsumexp.push_back(5);
    }
  }
};

struct Result {
  std::vector<int64_t> tokens, committed, cut;
  std::vector<float> threshold, logsumexp;
  std::vector<char> kept, invalid;
  int64_t bad_row;
};

Result run(Call& call, sjd2::Rule rule, int threads) {
  const int64_t size = call.rows * call.slots;
  Result result{std::vector<int64_t>(size, -7), std::vector<int64_t>(call.rows, -7), std::vector<int64_t>(size), std::vector<float>(size),
                std::vector<float>(size), std::vector<char>(size), std::vector<char>(call.rows), 0};
  const auto view = [&](std::vector<float>& values, int64_t offset) {
    return sjd2::Logits{reinterpret_cast<const char*>(values.data() + offset), sjd2::Float::kFloat32, {call.rows, call.slots, call.ids},
                        {call.slots * call.ids, call.ids, 1}};
  };
  static_assert(sizeof(bool) == sizeof(char));
  std::vector<char> clean(size, 1);
  const auto flags = [](std::vector<char>& values) { return reinterpret_cast<bool*>(values.data()); };
  const sjd2::Processing processing{call.scale.data(), call.temperature.data(), call.top_k.data(), call.top_p.data(), nullptr};
  const sjd2::Window window{call.drafts.data(), call.q_row.data(), flags(clean), call.forced.data(), call.remaining.data(), call.seeds.data(),
                            call.iteration.data(), call.position.data()};
  const sjd2::Statistics found{result.threshold.data(), result.cut.data(), result.logsumexp.data()};
  result.bad_row = sjd2::cpu::verify(view(call.logits, 0), view(call.logits, size * call.ids), view(call.last, 0), view(call.last, 0),
                                     {call.threshold.data(), call.cut.data(), call.logsumexp.data()}, processing, window, rule, -1.0F, 0,
                                     {result.tokens.data(), flags(result.kept), result.committed.data(), found, flags(result.invalid)}, threads);
  return result;
}

void calls() {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    Call call(1 + static_cast<int64_t>(random() % 3), 1 + static_cast<int64_t>(random() % 5), 1 + static_cast<int64_t>(random() % 2100), random);
    for (int64_t rule = 0; rule < 5; ++rule) {
      const Result one = run(call, static_cast<sjd2::Rule>(rule), 1), several = run(call, static_cast<sjd2::Rule>(rule), 3);
      CHECK(one.bad_row == -1);
      for (const int64_t token : one.tokens) CHECK(token >= 0 && token < call.ids);
      for (int64_t row = 0; row < call.rows; ++row) {
        CHECK(one.committed[row] <= std::min(call.slots, call.remaining[row]));
        CHECK((one.committed[row] == 0) == (call.remaining[row] == 0));
      }
      CHECK(one.tokens == several.tokens && one.kept == several.kept && one.committed == several.committed && one.invalid == several.invalid);
    }
  }
}

void what_is_out_of_range_is_found_before_anything_is_written() {
  std::mt19937_64 random(2);
  Call call(3, 2, 10, random);
  call.drafts[3] = 10;
  Result result = run(call, sjd2::Rule::kCoupled, 1);
  CHECK(result.bad_row == 1);
  for (const int64_t token : result.tokens) CHECK(token == -7);
  call.drafts[3] = 0;
  call.q_row[5] = 2;
  CHECK(run(call, sjd2::Rule::kCoupled, 1).bad_row == 2);
}

}  // namespace

int main() {
  random_words();
  draws();
  calls();
  what_is_out_of_range_is_found_before_anything_is_written();
}
