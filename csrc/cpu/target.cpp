#include "target.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace sjd2::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float load(const Logits& logits, int64_t row, int64_t slot, int64_t id) {
  const int64_t index = row * logits.stride[0] + slot * logits.stride[1] + id * logits.stride[2];
  switch (logits.type) {
    case Float::kFloat32: return sjd2::load<Float::kFloat32>(logits.data, index);
    case Float::kBfloat16: return sjd2::load<Float::kBfloat16>(logits.data, index);
    default: return sjd2::load<Float::kFloat16>(logits.data, index);
  }
}

template <Float kType>
void load_all(const Logits& logits, int64_t row, int64_t slot, float* values) {
  const int64_t start = row * logits.stride[0] + slot * logits.stride[1], count = logits.size[2], step = logits.stride[2];
  if (step == 1) {  // written apart, so that it becomes vector instructions
    for (int64_t id = 0; id < count; ++id) values[id] = sjd2::load<kType>(logits.data, start + id);
  } else {
    for (int64_t id = 0; id < count; ++id) values[id] = sjd2::load<kType>(logits.data, start + id * step);
  }
}

void load_all(const Logits& logits, int64_t row, int64_t slot, float* values) {
  switch (logits.type) {
    case Float::kFloat32: return load_all<Float::kFloat32>(logits, row, slot, values);
    case Float::kBfloat16: return load_all<Float::kBfloat16>(logits, row, slot, values);
    default: return load_all<Float::kFloat16>(logits, row, slot, values);
  }
}

// An id that either branch masks stays masked (the formula would give NaN or +inf), but a NaN beside a mask comes through.
float guided(float z, float uncond, float scale) {
  const float value = uncond + scale * (z - uncond);
  if (z == kNever) return std::isnan(uncond) ? uncond : z;
  if (uncond == kNever) return std::isnan(z) ? z : uncond;
  return value;
}

}  // namespace

float Forward::scaled(int64_t row, int64_t slot, int64_t id) const {
  if (processing.allowed != nullptr && !processing.allowed[id]) return kNever;
  float z = load(logits, row, slot, id);
  const float scale = processing.guidance_scale[row];
  if (uncond.data != nullptr && scale != 1.0F) z = guided(z, load(uncond, row, slot, id), scale);
  return z / processing.temperature[row];
}

void Target::scale(const Forward& forward, int64_t row, int64_t slot) {
  const int64_t vocabulary = forward.logits.size[2];
  const Processing& processing = forward.processing;
  z_.resize(vocabulary);
  load_all(forward.logits, row, slot, z_.data());
  const float scale = processing.guidance_scale[row], temperature = processing.temperature[row];
  if (forward.uncond.data != nullptr && scale != 1.0F) {
    scratch_.resize(vocabulary);
    load_all(forward.uncond, row, slot, scratch_.data());
    for (int64_t id = 0; id < vocabulary; ++id) z_[id] = guided(z_[id], scratch_[id], scale);
  }
  if (processing.allowed != nullptr)
    for (int64_t id = 0; id < vocabulary; ++id)
      if (!processing.allowed[id]) z_[id] = kNever;
  bool nan = false;
  float largest = kNever;
  for (float& z : z_) {
    z /= temperature;
    nan |= z != z;
    largest = z > largest ? z : largest;
  }
  valid_ = !nan && std::isfinite(largest);
  largest_ = largest;
  // What is drawn then means nothing, but searching and sorting need an order.
  if (nan)
    for (float& z : z_)
      if (std::isnan(z)) z = kNever;
}

void Target::list(float threshold, int64_t cut) {
  const int64_t vocabulary = static_cast<int64_t>(z_.size());
  ids_.resize(vocabulary);
  int64_t count = 0;
  for (int64_t id = 0; id < vocabulary; ++id) {  // without a branch: which ids are kept is as good as random
    ids_[count] = id;
    count += static_cast<int64_t>((z_[id] > kNever) & inside(z_[id], id, threshold, cut));
  }
  ids_.resize(count);
}

Target::Border Target::find(const Forward& forward, int64_t row, int64_t slot) {
  scale(forward, row, slot);
  const int64_t vocabulary = static_cast<int64_t>(z_.size());
  const int64_t top_k = forward.processing.top_k[row] == 0 ? vocabulary : std::min(forward.processing.top_k[row], vocabulary);
  Border border{kNever, vocabulary, kNever};
  if (top_k < vocabulary) {
    scratch_ = z_;
    std::nth_element(scratch_.begin(), scratch_.begin() + (top_k - 1), scratch_.end(), std::greater<>());
    border.threshold = scratch_[top_k - 1];
    int64_t above = 0;
    for (const float z : z_) above += z > border.threshold;
    int64_t wanted = top_k - above;  // of the tied ids, at least one survives: those with the lowest numbers
    for (border.cut = 0; border.cut < vocabulary; ++border.cut)
      if (z_[border.cut] == border.threshold && --wanted == 0) break;
  }
  list(border.threshold, border.cut);
  if (const float top_p = forward.processing.top_p[row]; top_p < 1.0F) {
    order_ = ids_;
    std::sort(order_.begin(), order_.end(), [this](int64_t a, int64_t b) { return z_[a] != z_[b] ? z_[a] > z_[b] : a < b; });
    double sum = 0;
    for (const int64_t id : order_) sum += std::exp(z_[id] - largest_);
    double running = 0;
    size_t kept = 0;
    for (const int64_t id : order_) {
      const float probability = static_cast<float>(std::exp(z_[id] - largest_) / sum);
      running += probability;
      kept += static_cast<float>(running) - probability < top_p;
    }
    const int64_t last = order_.empty() ? 0 : order_[std::max<size_t>(kept, 1) - 1];
    border.threshold = z_[last];
    border.cut = last;
    list(border.threshold, border.cut);
  }
  double sum = 0;
  log_p_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); ++i) sum += std::exp(z_[ids_[i]] - largest_);
  border.logsumexp = ids_.empty() ? kNever : largest_ + std::log(static_cast<float>(sum));
  for (size_t i = 0; i < ids_.size(); ++i) log_p_[i] = z_[ids_[i]] - border.logsumexp;
  return border;
}

void Target::rebuild(const Forward& forward, int64_t row, int64_t slot, const Border& border) {
  scale(forward, row, slot);
  list(border.threshold, border.cut);
  log_p_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); ++i) log_p_[i] = z_[ids_[i]] - border.logsumexp;
}

float Target::log_p_of(int64_t id, const Border& border) const {
  return inside(z_[id], id, border.threshold, border.cut) ? z_[id] - border.logsumexp : kNever;
}

}  // namespace sjd2::cpu
