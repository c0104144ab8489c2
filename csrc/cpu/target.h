// The target distribution of one slot, as a list of the ids that processing leaves.
#pragma once

#include <cstdint>
#include <vector>

#include "../sampling.h"

namespace sjd2::cpu {

// Logits of one forward, and how they are processed.
struct Forward {
  const Logits& logits;
  const Logits& uncond;
  const Processing& processing;

  // The scaled logit of one id: guided, divided by the temperature, -inf where the id is not allowed.
  float scaled(int64_t row, int64_t slot, int64_t id) const;
};

// Scratch of a thread, used again for every slot it works on.
class Target {
 public:
  struct Border {
    float threshold;
    int64_t cut;
    float logsumexp;
  };

  // Find the border of a slot, and list what it leaves.
  Border find(const Forward& forward, int64_t row, int64_t slot);

  // List what a border that is known leaves.
  void rebuild(const Forward& forward, int64_t row, int64_t slot, const Border& border);

  // Ascending, without those of no probability.
  const std::vector<int64_t>& ids() const { return ids_; }
  // log p of each listed id.
  const std::vector<float>& log_p() const { return log_p_; }
  // Whether a distribution exists: no NaN, no +inf, not -inf alone.
  bool valid() const { return valid_; }

  // log p of any id.
  float log_p_of(int64_t id, const Border& border) const;

 private:
  void scale(const Forward& forward, int64_t row, int64_t slot);
  void list(float threshold, int64_t cut);

  std::vector<float> z_, scratch_, log_p_;
  std::vector<int64_t> ids_, order_;
  float largest_ = 0;
  bool valid_ = false;
};

// Whether an id of scaled logit `z` is inside a border.
inline bool inside(float z, int64_t id, float threshold, int64_t cut) { return z > threshold || (z == threshold && id <= cut); }

}  // namespace sjd2::cpu
