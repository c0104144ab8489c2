// verify and sample on raw memory, in float32; their definition is sjd2_kernels/verify/reference.py and sampling/op.py. Nothing here knows PyTorch.
//
// B rows, W slots, V ids. Vectors of a row are [B], of a slot [B, W], all contiguous; only logits may have any strides.
#pragma once

#include <cstdint>

#include "floats.h"

namespace sjd2 {

// [rows, slots, ids].
using Logits = Floats;

// Sampling parameters of the rows; `allowed` is [ids], or no data where every id may be drawn.
struct Processing {
  const float* guidance_scale;
  const float* temperature;
  const int64_t* top_k;
  const float* top_p;
  const bool* allowed;
};

// What rebuilds a slot's distribution from its logits: ids above the threshold, and those equal to it up to the cut, are kept.
struct Statistics {
  float* threshold;
  int64_t* cut;
  float* logsumexp;
};

enum class Rule : int64_t { kFresh, kCoupled, kGumbelTail, kGumbel, kKeepRatio };

// Where a draft came from, if not from the slot of the last forward that a number from 0 on names.
constexpr int64_t kNoQ = -1, kUniformQ = -2, kPointQ = -3;

struct Window {
  const int64_t* drafts;
  const int64_t* q_row;
  const bool* clean;
  const int64_t* forced;
  const int64_t* remaining;
  const int64_t* seeds;
  const int64_t* iteration;
  const int64_t* position;
};

struct Verified {
  int64_t* tokens;
  bool* kept;
  int64_t* committed;
  Statistics statistics;
  bool* invalid;
};

namespace cpu {

// The first row with a draft that is no id, or a q_row beyond the window; -1 if there is none. The first two are found before anything is written.
int64_t verify(const Logits& logits, const Logits& uncond, const Logits& last, const Logits& last_uncond, const Statistics& last_statistics,
               const Processing& processing, const Window& window, Rule rule, float log_keep_ratio, int64_t end_id, const Verified& result, int threads);

// One draw for each of `slots` positions [B, slots], from the logits of its slot, or of slot 0 where the logits have one slot only. `purpose` is
// that of random.py: with that of frozen Gumbel noise the draw is the arg-max, with any other an inverse CDF.
void sample(const Logits& logits, const Logits& uncond, const Processing& processing, const int64_t* seeds, const int64_t* iteration,
            const int64_t* position, int64_t slots, int64_t purpose, int64_t* tokens, int threads);

}  // namespace cpu
}  // namespace sjd2
