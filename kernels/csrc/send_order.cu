// The rank each slot's token is carried to, -1 where an earlier slot of the token carries it there already: a thread a slot.
#include "common.h"

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
carried_ranks(const int64_t *__restrict__ expert_S, int64_t *__restrict__ rank_S, int64_t S, int K, int share) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot >= S) return;
  const int64_t rank = expert_S[slot] / share;
  bool is_carried = false;
  for (int64_t other = slot - slot % K; other < slot; other++) is_carried |= expert_S[other] / share == rank;
  rank_S[slot] = is_carried || expert_S[slot] < 0 ? -1 : rank;
}

}  // namespace

EXPORT int mmmoe_carried_ranks(const int64_t *expert, int64_t *rank, int64_t N, int64_t K, int64_t share,
                               void *raw_stream) {
  if (N < 0 || K < 1 || share < 1 || N * K >= (int64_t{1} << 31)) return kBadArgument;
  if (N == 0) return 0;
  const unsigned blocks = static_cast<unsigned>((N * K + kThreads - 1) / kThreads);
  LAUNCH(carried_ranks, blocks, kThreads, 0, static_cast<cudaStream_t>(raw_stream), expert, rank, N * K,
         static_cast<int>(K), static_cast<int>(share));
  return last_error();
}
