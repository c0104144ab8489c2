// denoise on raw memory, in float32; its definition is sjd2_kernels/denoise/reference.py. Nothing here knows PyTorch.
//
// B rows, W slots, D dimensions, V ids. Vectors of a row are [B], of a slot [B, W], all contiguous; only embeddings may have any strides.
#pragma once

#include <cstdint>

#include "floats.h"

namespace sjd2 {

// [rows, slots, dimensions]; a table of ids is one row of as many slots.
using Embeddings = Floats;

// `mean` and `std` are [D].
struct NoisySlots {
  const float* mean;
  const float* std;
  const int64_t* tokens;
  const int64_t* committed;
  const float* levels;
  const float* next_levels;
  const int64_t* seeds;
  const int64_t* position;
};

namespace cpu {

// The first row with a token that is no id of `weight`, or more committed slots than there are; -1 if there is none. Nothing is written otherwise.
// `out` is contiguous, of the type of `embeds`.
int64_t denoise(const Embeddings& embeds, const Embeddings& weight, const NoisySlots& slots, char* out, int threads);

}  // namespace cpu
}  // namespace sjd2
