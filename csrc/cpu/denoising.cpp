#include "../denoising.h"

#include <algorithm>

#include "../philox.h"
#include "parallel.h"

namespace sjd2::cpu {
namespace {

// One slot of the next window. Noise is made for slots that are born, and for no other.
template <Float kType, Float kTable>
void slot(const Embeddings& embeds, const Embeddings& weight, const NoisySlots& slots, int64_t row, int64_t place, char* out) {
  const int64_t window = embeds.size[1], width = embeds.size[2], here = row * window + place, source = place + slots.committed[row];
  const bool fresh = source >= window;
  const float level = fresh ? 1.0F : slots.levels[row * window + source], next = slots.next_levels[here];
  const int64_t target = slots.tokens[here] * weight.stride[1], step = weight.stride[2], at = here * width;
  // To the output's type before anything is computed: a clean slot is fed exactly this.
  const auto clean = [&](int64_t d) {
    const float value = load<kTable>(weight.data, target + d * step);
    if constexpr (kType == kTable) return value;
    char rounded[4];
    store<kType>(rounded, 0, value);
    return load<kType>(rounded, 0);
  };
  if (next <= 0 || level <= 0) {
    for (int64_t d = 0; d < width; ++d) store<kType>(out, at + d, clean(d));
    return;
  }
  const float share = next / level, rest = 1.0F - share;
  if (!fresh) {
    const int64_t before = row * embeds.stride[0] + source * embeds.stride[1];
    for (int64_t d = 0; d < width; ++d) {
      store<kType>(out, at + d, share * load<kType>(embeds.data, before + d * embeds.stride[2]) + rest * clean(d));
    }
    return;
  }
  const uint32_t position = static_cast<uint32_t>(slots.position[row] + place);
  for (int64_t first = 0; first < width; first += 4) {
    const auto words = philox({static_cast<uint32_t>(first / 4), position, 0, kNoiseWords}, slots.seeds[row]);
    float noise[4];
    for (int pair = 0; pair < 4; pair += 2) {
      const auto both = normals_from_uniforms(uniform_from_bits(words[pair]), uniform_from_bits(words[pair + 1]));
      noise[pair] = both.first;
      noise[pair + 1] = both.second;
    }
    for (int64_t d = first; d < std::min(first + 4, width); ++d) {
      store<kType>(out, at + d, share * (slots.std[d] * noise[d - first] + slots.mean[d]) + rest * clean(d));
    }
  }
}

using Slot = void (*)(const Embeddings&, const Embeddings&, const NoisySlots&, int64_t, int64_t, char*);

template <Float kType>
Slot slot_of(Float table) {
  switch (table) {
    case Float::kFloat32: return slot<kType, Float::kFloat32>;
    case Float::kBfloat16: return slot<kType, Float::kBfloat16>;
    default: return slot<kType, Float::kFloat16>;
  }
}

Slot slot_of(Float type, Float table) {
  switch (type) {
    case Float::kFloat32: return slot_of<Float::kFloat32>(table);
    case Float::kBfloat16: return slot_of<Float::kBfloat16>(table);
    default: return slot_of<Float::kFloat16>(table);
  }
}

}  // namespace

int64_t denoise(const Embeddings& embeds, const Embeddings& weight, const NoisySlots& slots, char* out, int threads) {
  const int64_t rows = embeds.size[0], window = embeds.size[1], count = rows * window;
  for (int64_t row = 0; row < rows; ++row) {
    bool fits = slots.committed[row] >= 0 && slots.committed[row] <= window;
    for (int64_t here = row * window; here < (row + 1) * window; ++here) fits &= slots.tokens[here] >= 0 && slots.tokens[here] < weight.size[1];
    if (!fits) return row;
  }
  const Slot work = slot_of(embeds.type, weight.type);
  parallel_for(count, 3 * count * embeds.size[2] * size_of(embeds.type), threads,
               [&](int64_t here) { work(embeds, weight, slots, here / window, here % window, out); });
  return -1;
}

}  // namespace sjd2::cpu
