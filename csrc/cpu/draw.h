// Drawing an id from listed masses.
#pragma once

#include <cstdint>
#include <vector>

namespace sjd2::cpu {

// The first of the ascending `ids` whose running mass exceeds `uniform` times the total, in the block order of sampling/inverse_cdf.py; 0 of none.
int64_t inverse_cdf(const std::vector<int64_t>& ids, const std::vector<float>& masses, int64_t vocabulary, float uniform);

// The arg-max of log p and the Gumbel noise frozen per (seed, position, id).
int64_t frozen_draw(const std::vector<int64_t>& ids, const std::vector<float>& log_p, int64_t seed, int64_t position);

}  // namespace sjd2::cpu
