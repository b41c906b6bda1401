// Routing in three launches: logits (N, E) become gates, experts, counts, offsets, a stable order and its inverse.
//
// `choose` takes a warp a token (softmax and the K largest) and ranks the tile's slots; order.h has the rest. Slots are
// numbered token * K + k; within an expert they keep this order; slots beyond the capacity get place -1 and gate 0.
// Ties go to the lower expert. A row that holds a NaN gets NaN gates, so that it cannot pass unseen.
#include "order.h"

namespace {

constexpr int kTileTokens = 64;  // tokens of one block of `choose`
constexpr int kMostChosen = kMostTileSlots / kTileTokens;
constexpr float kLowest = -INFINITY;

enum Gate : int { kSoftmaxAll = 0, kSoftmaxAllRenormalised = 1, kSoftmaxChosen = 2 };

// The K largest of a token's logits and their gates; lane k < K returns the k-th.
template <class T, int kEach>
__device__ void choose_token(const T *logits_E, int E, int K, int gate_rule, float &gate, int &expert) {
  const int lane = threadIdx.x & 31;
  float value[kEach];
  float highest = kLowest;
  bool is_nan = false;
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int e = i * 32 + lane;
    value[i] = e < E ? to_float(logits_E[e]) : kLowest;
    is_nan |= value[i] != value[i];
    if (value[i] != value[i]) value[i] = kLowest;
    highest = fmaxf(highest, value[i]);
  }
  is_nan = __ballot_sync(kAll, is_nan) != 0;
  highest = warp_max(highest);
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < kEach; i++) all += i * 32 + lane < E ? expf(value[i] - highest) : 0.f;
  all = warp_sum(all);

  unsigned taken = 0;  // bit i: this lane's i-th expert is chosen already
  float chosen = 0.f, mine = 0.f;
  for (int k = 0; k < K; k++) {
    float best = kLowest;
    int best_expert = 1 << 30;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      const int e = i * 32 + lane;
      const bool is_free = e < E && !(taken >> i & 1);
      if (is_free && (value[i] > best || best_expert == 1 << 30)) best = value[i], best_expert = e;
    }
    for (int m = 16; m; m >>= 1) {
      const float other = __shfl_xor_sync(kAll, best, m);
      const int other_expert = __shfl_xor_sync(kAll, best_expert, m);
      const bool is_better = other > best || (other == best && other_expert < best_expert);
      if (other_expert != 1 << 30 && (best_expert == 1 << 30 || is_better)) best = other, best_expert = other_expert;
    }
    if ((best_expert & 31) == lane) taken |= 1u << (best_expert >> 5);
    const float weight = expf(best - highest);
    chosen += weight;
    if (lane == k) mine = weight, expert = best_expert;
  }
  gate = mine / (gate_rule == kSoftmaxAll ? all : chosen);
  if (is_nan) gate = NAN;
}

template <class T, int kEach>
__global__ void __launch_bounds__(kThreads)
choose(const T *logits_NE, const bool *valid_N, float *gate_S, int64_t *expert_S, int32_t *rank_S, int32_t *tile_count,
       int64_t N, int E, int K, int gate_rule) {
  DYNAMIC_SHARED(int, shared);
  int *expert_of = shared;               // [kMostTileSlots]
  int *count = shared + kMostTileSlots;  // [kWarps][E]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileTokens;
  const int tokens = static_cast<int>(N - first < kTileTokens ? N - first : kTileTokens);
  const int slots = tokens * K;

  for (int i = threadIdx.x; i < kWarps * E; i += kThreads) count[i] = 0;
  for (int t = warp; t < tokens; t += kWarps) {
    float gate = 0.f;
    int expert = 0;
    choose_token<T, kEach>(logits_NE + (first + t) * E, E, K, gate_rule, gate, expert);
    if (lane < K) {
      const int64_t slot = (first + t) * K + lane;
      gate_S[slot] = gate;
      expert_S[slot] = expert;
      expert_of[t * K + lane] = !valid_N || valid_N[first + t] ? expert : -1;
    }
  }
  rank_tile(expert_of, count, slots, first * K, E, rank_S, tile_count + blockIdx.x * static_cast<int64_t>(E));
}

// d loss / d logits from d loss / d gates: a warp a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
backward(const T *logits_NE, const int64_t *expert_S, const int64_t *inverse_S, const float *dgate_S, T *dlogits_NE,
         int64_t N, int E, int K, int gate_rule) {
  const int lane = threadIdx.x & 31;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (token >= N) return;
  const T *logits_E = logits_NE + token * E;
  T *dlogits_E = dlogits_NE + token * E;
  const int64_t slot = token * K + lane;
  const bool is_slot = lane < K;
  const int mine = is_slot ? static_cast<int>(expert_S[slot]) : -1;
  const float dgate = is_slot && inverse_S[slot] >= 0 ? dgate_S[slot] : 0.f;

  float highest = kLowest;
  for (int e = lane; e < E; e += 32) highest = fmaxf(highest, to_float(logits_E[e]));
  highest = warp_max(highest);
  const float weight = is_slot ? expf(to_float(logits_E[mine]) - highest) : 0.f;
  float whole = warp_sum(weight);
  if (gate_rule == kSoftmaxAll) {
    float all = 0.f;
    for (int e = lane; e < E; e += 32) all += expf(to_float(logits_E[e]) - highest);
    whole = warp_sum(all);
  }
  const float gate = weight / whole;
  const float inner = warp_sum(gate * dgate);  // sum over k of gate * dgate
  for (int e = lane; e < E; e += 32) {
    const float p = gate_rule == kSoftmaxAll ? expf(to_float(logits_E[e]) - highest) / whole : 0.f;
    dlogits_E[e] = from_float<T>(-p * inner);
  }
  __syncwarp();
  if (is_slot) {
    dlogits_E[mine] = from_float<T>(gate * dgate - gate * inner);
  }
}

template <class T, int kEach>
void launch_choose(const void *logits, const bool *valid, float *gate, int64_t *expert, int32_t *rank,
                   int32_t *tile_count, int64_t N, int E, int K, int gate_rule, cudaStream_t stream) {
  const unsigned tiles = static_cast<unsigned>((N + kTileTokens - 1) / kTileTokens);
  LAUNCH((choose<T, kEach>), tiles, kThreads, rank_tile_bytes(E), stream, static_cast<const T *>(logits), valid,
         gate, expert, rank, tile_count, N, E, K, gate_rule);
}

template <class T>
void choose_by_width(const void *logits, const bool *valid, float *gate, int64_t *expert, int32_t *rank,
                     int32_t *tile_count, int64_t N, int E, int K, int gate_rule, cudaStream_t stream) {
  const auto go = E <= 32    ? launch_choose<T, 1>
                  : E <= 64  ? launch_choose<T, 2>
                  : E <= 128 ? launch_choose<T, 4>
                  : E <= 256 ? launch_choose<T, 8>
                  : E <= 512 ? launch_choose<T, 16>
                             : launch_choose<T, 32>;
  go(logits, valid, gate, expert, rank, tile_count, N, E, K, gate_rule, stream);
}

bool is_sound(int64_t N, int64_t E, int64_t K, int64_t gate_rule, int64_t capacity) {
  return N >= 0 && E >= 1 && E <= kMostExperts && K >= 1 && K <= kMostChosen && K <= E && capacity >= 1 &&
         gate_rule >= kSoftmaxAll && gate_rule <= kSoftmaxChosen && N * K < (int64_t{1} << 31);
}

}  // namespace

// `valid` (N) says which tokens are sent at all; a null pointer stands for all.
EXPORT int mmmoe_route(const void *logits, const bool *valid, float *gate, int64_t *expert, int64_t *count,
                       int64_t *offset, int64_t *order, int64_t *inverse, int32_t *workspace, int64_t N,
                       int64_t num_experts, int64_t num_chosen, int64_t rule, int64_t capacity, int64_t type,
                       void *raw_stream) {
  if (!is_sound(N, num_experts, num_chosen, rule, capacity)) return kBadArgument;
  const int E = static_cast<int>(num_experts), K = static_cast<int>(num_chosen), gate_rule = static_cast<int>(rule);
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const int64_t tiles = (N + kTileTokens - 1) / kTileTokens, S = N * K;
  int32_t *tile_count = workspace, *rank = workspace + tiles * E;
  if (N > 0) {
    const int status = by_type(type, [&](auto element) {
      choose_by_width<decltype(element)>(logits, valid, gate, expert, rank, tile_count, N, E, K, gate_rule, stream);
      return 0;
    });
    if (status) return status;
  }
  launch_scan_and_place(expert, rank, tile_count, gate, count, offset, order, inverse, S, E, kTileTokens * K, capacity,
                        stream);
  return last_error();
}

EXPORT int mmmoe_route_backward(const void *logits, const int64_t *expert, const int64_t *inverse, const float *dgate,
                                void *dlogits, int64_t N, int64_t num_experts, int64_t num_chosen, int64_t rule,
                                int64_t type, void *raw_stream) {
  if (!is_sound(N, num_experts, num_chosen, rule, 1)) return kBadArgument;
  if (N == 0) return 0;
  const int E = static_cast<int>(num_experts), K = static_cast<int>(num_chosen), gate_rule = static_cast<int>(rule);
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const unsigned blocks = static_cast<unsigned>((N + kWarps - 1) / kWarps);
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    LAUNCH(backward<T>, blocks, kThreads, 0, stream, static_cast<const T *>(logits), expert, inverse, dgate,
           static_cast<T *>(dlogits), N, E, K, gate_rule);
    return static_cast<int>(last_error());
  });
}
