// Routing on a CPU: the K largest logits of each token and their gates, then the order of the slots.
#include "cpu.h"

namespace {

constexpr int kMostExperts = 1024;
constexpr int kMostChosen = 8;

enum Gate : int { kSoftmaxAll = 0, kSoftmaxAllRenormalised = 1, kSoftmaxChosen = 2 };

// One token: its experts by falling logit (ties to the lower number) and their gates.
template <class A>
void choose(const A *logits_E, int64_t E, int64_t K, int64_t rule, A *gate_K, int64_t *expert_K) {
  A best[kMostChosen + 1];
  int64_t who[kMostChosen + 1];
  int64_t filled = 0;
  for (int64_t e = 0; e < E; e++) {
    const A value = logits_E[e];
    if (filled == K && !(value > best[K - 1])) continue;
    int64_t at = filled < K ? filled++ : K - 1;
    for (; at > 0 && value > best[at - 1]; at--) best[at] = best[at - 1], who[at] = who[at - 1];
    best[at] = value;
    who[at] = e;
  }
  bool has_nan = false;
  for (int64_t e = 0; e < E; e++) has_nan |= logits_E[e] != logits_E[e];
  A all = 0, chosen = 0;
  if (rule == kSoftmaxAll)
    for (int64_t e = 0; e < E; e++) all += exp_below(logits_E[e] - best[0]);
  for (int64_t k = 0; k < K; k++) chosen += gate_K[k] = exp_below(best[k] - best[0]);
  for (int64_t k = 0; k < K; k++) {
    gate_K[k] = has_nan ? std::numeric_limits<A>::quiet_NaN() : gate_K[k] / (rule == kSoftmaxAll ? all : chosen);
    expert_K[k] = who[k];
  }
}

}  // namespace

// `valid` (N) says which tokens are sent at all; a null pointer stands for all.
EXPORT int mmmoe_route(const void *logits, const bool *valid, void *gate, int64_t *expert, int64_t *count,
                       int64_t *offset, int64_t *order, int64_t *inverse, int32_t *, int64_t N, int64_t E, int64_t K,
                       int64_t rule, int64_t capacity, int64_t type, void *) {
  if (E < 1 || E > kMostExperts || K < 1 || K > kMostChosen || K > E || capacity < 1) return kBadArgument;
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    using A = typename Exact<T>::type;
    const T *logits_NE = static_cast<const T *>(logits);
    A *gate_NK = static_cast<A *>(gate);
#pragma omp parallel for if (N * E > 16384)
    for (int64_t n = 0; n < N; n++) {
      A row[kMostExperts];
      for (int64_t e = 0; e < E; e++) row[e] = static_cast<A>(logits_NE[n * E + e]);
      choose(row, E, K, rule, gate_NK + n * K, expert + n * K);
    }
    std::vector<int64_t> sent;  // the experts again, -1 for tokens that are not sent
    if (valid) {
      sent.assign(expert, expert + N * K);
      for (int64_t s = 0; s < N * K; s++)
        if (!valid[s / K]) sent[s] = -1;
    }
    order_slots(valid ? sent.data() : expert, N * K, E, capacity, count, offset, order, inverse);
    if (offset[E] < N * K)
      for (int64_t s = 0; s < N * K; s++)
        if (inverse[s] < 0 && (!valid || valid[s / K]) && gate_NK[s] == gate_NK[s]) gate_NK[s] = 0;  // a NaN stays
    return 0;
  });
}

// d loss / d logits, with d gate_k / d logit_e = gate_k ([e is chosen as k] - p_e), p over all experts or the chosen ones.
EXPORT int mmmoe_route_backward(const void *logits, const int64_t *expert, const int64_t *inverse, const void *dgate,
                                void *dlogits, int64_t N, int64_t E, int64_t K, int64_t rule, int64_t type, void *) {
  if (E < 1 || E > kMostExperts || K < 1 || K > kMostChosen || K > E) return kBadArgument;
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    using A = typename Exact<T>::type;
    const T *logits_NE = static_cast<const T *>(logits);
    const A *dgate_NK = static_cast<const A *>(dgate);
    T *dlogits_NE = static_cast<T *>(dlogits);
#pragma omp parallel for if (N * E > 16384)
    for (int64_t n = 0; n < N; n++) {
      const int64_t *expert_K = expert + n * K;
      A p[kMostExperts], gate[kMostChosen], highest = -std::numeric_limits<A>::infinity(), whole = 0, inner = 0;
      for (int64_t e = 0; e < E; e++) highest = std::max(highest, p[e] = static_cast<A>(logits_NE[n * E + e]));
      for (int64_t k = 0; k < K; k++) gate[k] = exp_below(p[expert_K[k]] - highest);
      if (rule == kSoftmaxAll) {
        for (int64_t e = 0; e < E; e++) whole += p[e] = exp_below(p[e] - highest);
      } else {
        std::fill_n(p, E, A{0});
        for (int64_t k = 0; k < K; k++) whole += p[expert_K[k]] = gate[k];
      }
      for (int64_t k = 0; k < K; k++) {
        gate[k] *= (inverse[n * K + k] < 0 ? A{0} : dgate_NK[n * K + k]) / whole;
        inner += gate[k];
      }
      for (int64_t e = 0; e < E; e++) p[e] *= -inner / whole;
      for (int64_t k = 0; k < K; k++) p[expert_K[k]] += gate[k];
      for (int64_t e = 0; e < E; e++) dlogits_NE[n * E + e] = rounded<T>(p[e]);
    }
    return 0;
  });
}
