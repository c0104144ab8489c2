// Rounding, and steps of every type: results are the same on one thread and several, and what is out of range is found before anything is written.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../denoising.h"
#include "check.h"

namespace {

using sjd2::Float;

void rounding() {
  CHECK(sjd2::bfloat16_of(1.0F) == 0x3F80);
  CHECK(sjd2::bfloat16_of(sjd2::float_of(0x3F808000)) == 0x3F80);  // a tie goes to the even one
  CHECK(sjd2::bfloat16_of(sjd2::float_of(0x3F818000)) == 0x3F82);
  CHECK(sjd2::bfloat16_of(std::numeric_limits<float>::max()) == 0x7F80);
  CHECK((sjd2::bfloat16_of(std::nanf("")) & 0x7FFF) > 0x7F80);
  CHECK(sjd2::float16_of(1.0F) == 0x3C00);
  CHECK(sjd2::float16_of(65519.0F) == 0x7BFF);
  CHECK(sjd2::float16_of(-65520.0F) == 0xFC00);
  CHECK(sjd2::float16_of(0x1p-24F) == 1);
  CHECK(sjd2::float16_of(0x1p-25F) == 0);
  CHECK(sjd2::float16_of(-0x1.8p-24F) == 0x8002);
  CHECK((sjd2::float16_of(std::nanf("")) & 0x7FFF) > 0x7C00);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {  // what a type holds is left as it is
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = sjd2::load<Float::kFloat16>(reinterpret_cast<const char*>(&half), 0);
    CHECK(std::isnan(value) || sjd2::float16_of(value) == half);
    const float other = sjd2::load<Float::kBfloat16>(reinterpret_cast<const char*>(&half), 0);
    CHECK(std::isnan(other) || sjd2::bfloat16_of(other) == half);
  }
}

void steps(Float type, Float table, std::mt19937_64& random) {
  const int64_t rows = 3, slots = 40, width = 130, ids = 7;
  const auto number = [&](int64_t bound) { return static_cast<int64_t>(random() % bound); };
  std::vector<char> embeds(rows * slots * width * size_of(type)), weight(ids * width * size_of(table));
  for (auto* bytes : {&embeds, &weight}) {  // exponents far from infinity in every type
    for (auto& byte : *bytes) byte = static_cast<char>(number(60));
  }
  std::vector<float> mean(width, 0.5F), deviation(width, 2.0F), levels, next;
  std::vector<int64_t> tokens, committed, seeds, position;
  for (int64_t i = 0; i < rows * slots; ++i) {
    levels.push_back(static_cast<float>(number(5)) / 4);
    next.push_back(levels.back() * static_cast<float>(number(4)) / 3);
    tokens.push_back(number(ids));
  }
  for (int64_t row = 0; row < rows; ++row) {
    committed.push_back(number(slots + 1));
    seeds.push_back(static_cast<int64_t>(random()));
    position.push_back(number(5000));
  }
  const sjd2::Embeddings inputs{embeds.data(), type, {rows, slots, width}, {slots * width, width, 1}};
  const sjd2::Embeddings words{weight.data(), table, {1, ids, width}, {0, width, 1}};
  const sjd2::NoisySlots window{mean.data(), deviation.data(), tokens.data(),  committed.data(),
                                levels.data(), next.data(),      seeds.data(), position.data()};
  std::vector<char> alone(embeds.size()), together(embeds.size(), 1);
  CHECK(sjd2::cpu::denoise(inputs, words, window, alone.data(), 1) == -1);
  CHECK(sjd2::cpu::denoise(inputs, words, window, together.data(), 4) == -1);
  CHECK(alone == together);

  std::vector<char> untouched(embeds.size(), 42);
  const auto refused = [&](int64_t& value, int64_t wrong, int64_t row) {
    const int64_t right = value;
    value = wrong;
    CHECK(sjd2::cpu::denoise(inputs, words, window, untouched.data(), 1) == row);
    value = right;
  };
  refused(tokens[slots + 3], ids, 1);
  refused(tokens[0], -1, 0);
  refused(committed[2], slots + 1, 2);
  CHECK(untouched == std::vector<char>(embeds.size(), 42));
}

}  // namespace

int main() {
  rounding();
  std::mt19937_64 random(0);
  for (const Float type : {Float::kFloat32, Float::kBfloat16, Float::kFloat16}) {
    for (const Float table : {Float::kFloat32, Float::kBfloat16, Float::kFloat16}) steps(type, table, random);
  }
  return 0;
}
