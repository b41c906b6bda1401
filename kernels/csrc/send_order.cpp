// The rank each slot's token is carried to, -1 where an earlier slot of the token carries it there already.
#include "cpu.h"

EXPORT int mmmoe_carried_ranks(const int64_t *expert_S, int64_t *rank_S, int64_t N, int64_t K, int64_t share, void *) {
#pragma omp parallel for if (N * K > 16384)
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) {
      const int64_t rank = expert_S[n * K + k] / share;
      bool is_carried = false;
      for (int64_t j = 0; j < k; j++) is_carried |= expert_S[n * K + j] / share == rank;
      rank_S[n * K + k] = is_carried ? -1 : rank;
    }
  return 0;
}
