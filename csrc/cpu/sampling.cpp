#include "../sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "../philox.h"
#include "draw.h"
#include "parallel.h"
#include "target.h"

namespace sjd2::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Looking at an id takes about as long as moving so many bytes does.
constexpr int64_t kBytesPerId = 64;

thread_local Target target;
thread_local std::vector<float> masses;

void exponentials(const std::vector<float>& logs) {
  masses.resize(logs.size());
  std::transform(logs.begin(), logs.end(), masses.begin(), [](float log) { return std::exp(log); });
}

// One call of verify; the methods that take a slot work on `target`, which holds that slot's distribution.
class Verifier {
 public:
  Verifier(const Forward& now, const Forward& last, const Statistics& last_statistics, const Window& window, Rule rule, float log_keep_ratio,
           const Verified& result)
      : now_(now), last_(last), last_statistics_(last_statistics), window_(window), rule_(rule), log_keep_ratio_(log_keep_ratio),
        result_(result), batch_(now.logits.size[0]), slots_(now.logits.size[1]), vocabulary_(now.logits.size[2]),
        ratio_(new float[batch_ * slots_]), valid_(new bool[batch_ * slots_]) {
    int64_t allowed = vocabulary_;
    if (const bool* ids = now.processing.allowed; ids != nullptr) allowed = std::count(ids, ids + vocabulary_, true);
    log_uniform_ = -std::log(static_cast<float>(allowed));
  }

  int64_t first_bad_row() const {
    for (int64_t i = 0; i < batch_ * slots_; ++i) {
      const bool draft = window_.drafts[i] >= 0 && window_.drafts[i] < vocabulary_;
      if (!draft || window_.q_row[i] >= slots_ || window_.q_row[i] < kPointQ) return i / slots_;
    }
    return -1;
  }

  // Statistics and acceptance of a slot; its token, too, where the rule lets every slot decide for itself.
  void judge(int64_t i) {
    const int64_t row = i / slots_, slot = i % slots_;
    const Target::Border border = target.find(now_, row, slot);
    result_.statistics.threshold[i] = border.threshold;
    result_.statistics.cut[i] = border.cut;
    result_.statistics.logsumexp[i] = border.logsumexp;
    valid_[i] = target.valid();
    const int64_t draft = window_.drafts[i];
    if (rule_ == Rule::kGumbel) {
      result_.tokens[i] = frozen(i);
      result_.kept[i] = result_.tokens[i] == draft;
      return;
    }
    const float log_p = target.log_p_of(draft, border), log_q = log_q_of(i, draft);
    ratio_[i] = log_p - log_q;
    result_.kept[i] = has_q(i) && std::log(uniform(i, 0)) + log_q < log_p;
    if (rule_ == Rule::kCoupled) result_.tokens[i] = result_.kept[i] ? draft : residual(i);
  }

  // Token of a slot whose rule asks whether it lies behind the row's first rejection.
  void redraw(int64_t i, bool tail) {
    const int64_t draft = window_.drafts[i];
    if (tail && rule_ == Rule::kKeepRatio && has_q(i) && ratio_[i] > log_keep_ratio_) {
      result_.tokens[i] = draft;
      result_.kept[i] = true;
      return;
    }
    if (!tail && result_.kept[i]) {
      result_.tokens[i] = draft;
      return;
    }
    result_.kept[i] = false;
    const Statistics& found = result_.statistics;
    target.rebuild(now_, i / slots_, i % slots_, {found.threshold[i], found.cut[i], found.logsumexp[i]});
    if (!tail) {
      result_.tokens[i] = residual(i);
    } else if (rule_ == Rule::kGumbelTail) {
      result_.tokens[i] = frozen(i);
    } else {
      exponentials(target.log_p());
      result_.tokens[i] = inverse_cdf(target.ids(), masses, vocabulary_, uniform(i, 1));
    }
  }

  bool needs_tail() const { return rule_ != Rule::kGumbel && rule_ != Rule::kCoupled; }

  // The first slot of a row that was rejected, a forced slot never being one.
  int64_t first_rejection(int64_t row) const {
    for (int64_t i = row * slots_; i < (row + 1) * slots_; ++i)
      if (!result_.kept[i] && window_.forced[i] < 0) return i;
    return (row + 1) * slots_;
  }

  // Forced slots, commit count and flag of a row whose slots are done.
  void conclude(int64_t row, int64_t end_id) {
    int64_t committed = 1;
    bool runs = true, invalid = false;
    for (int64_t slot = 0; slot < slots_; ++slot) {
      const int64_t i = row * slots_ + slot;
      if (window_.forced[i] >= 0) {  // known, whatever the logits say; it vouches for what follows only if the known id was fed
        result_.tokens[i] = window_.forced[i];
        result_.kept[i] = window_.drafts[i] == window_.forced[i];
      } else {
        invalid |= !valid_[i];
      }
      runs &= result_.kept[i] && window_.clean[i] && slot < slots_ - 1;
      committed += static_cast<int64_t>(runs);
    }
    committed = std::min(committed, window_.remaining[row]);
    if (end_id >= 0) {
      const int64_t* tokens = result_.tokens + row * slots_;
      const int64_t* end = std::find(tokens, tokens + slots_, end_id);
      committed = std::min(committed, end == tokens + slots_ ? slots_ : end - tokens + 1);
    }
    result_.committed[row] = committed;
    result_.invalid[row] = invalid && window_.remaining[row] > 0;
  }

 private:
  int64_t position(int64_t i) const { return window_.position[i / slots_] + i % slots_; }

  float uniform(int64_t i, int word) const {
    const int64_t row = i / slots_;
    const std::array<uint32_t, 4> counter = {0, static_cast<uint32_t>(position(i)), static_cast<uint32_t>(window_.iteration[row]), kVerifyWords};
    return uniform_from_bits(philox(counter, window_.seeds[row])[word]);
  }

  int64_t frozen(int64_t i) const { return frozen_draw(target.ids(), target.log_p(), window_.seeds[i / slots_], position(i)); }

  bool has_q(int64_t i) const { return last_.logits.data != nullptr ? window_.q_row[i] != kNoQ : window_.q_row[i] < kNoQ; }

  // log q of an id, for a draft that has a q.
  float log_q_of(int64_t i, int64_t id) const {
    const int64_t row = i / slots_, from = window_.q_row[i];
    if (from == kPointQ) return id == window_.drafts[i] ? 0.0F : kNever;
    if (from == kUniformQ) return now_.processing.allowed == nullptr || now_.processing.allowed[id] ? log_uniform_ : kNever;
    if (from < 0 || last_.logits.data == nullptr) return 0.0F;
    const int64_t there = row * slots_ + from;
    const float z = last_.scaled(row, from, id);
    return inside(z, id, last_statistics_.threshold[there], last_statistics_.cut[there]) ? z - last_statistics_.logsumexp[there] : kNever;
  }

  // A draw from max(0, p - q); from p where that has no mass (p = q, the converged state) or where there is no q.
  int64_t residual(int64_t i) const {
    const std::vector<int64_t>& ids = target.ids();
    exponentials(target.log_p());
    if (has_q(i)) {
      thread_local std::vector<float> left;
      left.resize(ids.size());
      bool any = false;
      for (size_t n = 0; n < ids.size(); ++n) {
        left[n] = std::max(masses[n] - std::exp(log_q_of(i, ids[n])), 0.0F);
        any |= left[n] > 0;
      }
      if (any) return inverse_cdf(ids, left, vocabulary_, uniform(i, 1));
    }
    return inverse_cdf(ids, masses, vocabulary_, uniform(i, 1));
  }

  const Forward& now_;
  const Forward& last_;
  const Statistics& last_statistics_;
  const Window& window_;
  const Rule rule_;
  const float log_keep_ratio_;
  const Verified& result_;
  const int64_t batch_, slots_, vocabulary_;
  const std::unique_ptr<float[]> ratio_;
  const std::unique_ptr<bool[]> valid_;
  float log_uniform_;
};

}  // namespace

int64_t verify(const Logits& logits, const Logits& uncond, const Logits& last, const Logits& last_uncond, const Statistics& last_statistics,
               const Processing& processing, const Window& window, Rule rule, float log_keep_ratio, int64_t end_id, const Verified& result, int threads) {
  const Forward now{logits, uncond, processing}, before{last, last_uncond, processing};
  Verifier verifier(now, before, last_statistics, window, rule, log_keep_ratio, result);
  if (const int64_t row = verifier.first_bad_row(); row >= 0) return row;
  const int64_t batch = logits.size[0], slots = logits.size[1], bytes = batch * slots * logits.size[2] * kBytesPerId;
  parallel_for(batch * slots, bytes, threads, [&](int64_t i) { verifier.judge(i); });
  if (verifier.needs_tail()) {
    std::vector<int64_t> rejected(batch);
    for (int64_t row = 0; row < batch; ++row) rejected[row] = verifier.first_rejection(row);
    parallel_for(batch * slots, bytes, threads, [&](int64_t i) { verifier.redraw(i, i > rejected[i / slots]); });
  }
  for (int64_t row = 0; row < batch; ++row) verifier.conclude(row, end_id);
  return -1;
}

void sample(const Logits& logits, const Logits& uncond, const Processing& processing, const int64_t* seeds, const int64_t* iteration,
            const int64_t* position, int64_t slots, int64_t purpose, int64_t* tokens, int threads) {
  const Forward forward{logits, uncond, processing};
  const int64_t batch = logits.size[0], sources = logits.size[1], vocabulary = logits.size[2];
  const int64_t draws = sources == slots ? 1 : slots;  // of every slot of logits
  const auto work = [&](int64_t i) {
    const int64_t row = i / sources;
    target.find(forward, row, i % sources);
    exponentials(target.log_p());
    for (int64_t n = i * draws; n < (i + 1) * draws; ++n) {
      if (purpose == kGumbelWords) {
        tokens[n] = frozen_draw(target.ids(), target.log_p(), seeds[row], position[n]);
      } else {
        const std::array<uint32_t, 4> counter = {0, static_cast<uint32_t>(position[n]), static_cast<uint32_t>(iteration[row]),
                                                 static_cast<uint32_t>(purpose)};
        tokens[n] = inverse_cdf(target.ids(), masses, vocabulary, uniform_from_bits(philox(counter, seeds[row])[0]));
      }
    }
  };
  parallel_for(batch * sources, batch * sources * vocabulary * kBytesPerId, threads, work);
}

}  // namespace sjd2::cpu
