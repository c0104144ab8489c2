// The random-number contract of sjd2_kernels/random.py: Philox 4x32-10, and what is made of its words in float32.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

namespace sjd2 {

// What a word is for (Purpose in random.py); frozen noise leaves the iteration out.
constexpr uint32_t kVerifyWords = 0, kGumbelWords = 1, kNoiseWords = 3;

inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, int64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(static_cast<uint64_t>(seed)), key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0], second = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(second),
               static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(first)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// In (0, 1): never 0 and, though the largest words round to 1, never 1.
inline float uniform_from_bits(uint32_t word) {
  return std::min((static_cast<float>(word) + 0.5F) * 0x1p-32F, 1.0F - 0x1p-24F);
}

inline float gumbel_from_uniform(float uniform) { return -std::log(-std::log1p(-uniform)); }

// Two independent standard normals, by Box and Muller.
inline std::pair<float, float> normals_from_uniforms(float first, float second) {
  const float radius = std::sqrt(-2.0F * std::log(first)), angle = 6.283185307179586F * second;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace sjd2
