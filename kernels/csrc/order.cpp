// The stable order of slots by expert, by counting: each thread counts a run of slots, then knows where its own begin.
#include "cpu.h"

void order_slots(const int64_t *expert_S, int64_t slots, int64_t experts, int64_t capacity, int64_t *count_E,
                 int64_t *offset_E1, int64_t *order_S, int64_t *inverse_S) {
  const int most = slots < 16384 ? 1 : omp_get_max_threads();
  std::vector<int64_t> before(static_cast<size_t>(most) * experts, 0);  // slots of each expert before a thread's run
#pragma omp parallel num_threads(most)
  {
    const int threads = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = slots * self / threads, end = slots * (self + 1) / threads;
    int64_t *own = before.data() + self * experts;
    for (int64_t s = begin; s < end; s++)
      if (expert_S[s] >= 0 && expert_S[s] < experts) own[expert_S[s]]++;
#pragma omp barrier
#pragma omp single
    {
      int64_t offset = 0;
      for (int64_t e = 0; e < experts; e++) {
        int64_t all = 0;
        for (int t = 0; t < threads; t++) {
          const int64_t counted = before[t * experts + e];
          before[t * experts + e] = all;
          all += counted;
        }
        count_E[e] = std::min(all, capacity);
        offset_E1[e] = offset;
        offset += count_E[e];
      }
      offset_E1[experts] = offset;
      std::fill(order_S + offset, order_S + slots, int64_t{-1});
    }
    for (int64_t s = begin; s < end; s++) {
      const int64_t e = expert_S[s];
      const int64_t rank = e >= 0 && e < experts ? own[e]++ : capacity;
      const int64_t place = rank < capacity ? offset_E1[e] + rank : -1;
      inverse_S[s] = place;
      if (place >= 0) order_S[place] = s;
    }
  }
}

// Number of int32 that an order wants as workspace: none here.
EXPORT int64_t mmmoe_order_workspace(int64_t, int64_t) { return 0; }

EXPORT int mmmoe_order(const int64_t *expert_S, int64_t *count_E, int64_t *offset_E1, int64_t *order_S,
                       int64_t *inverse_S, int32_t *, int64_t slots, int64_t experts, int64_t capacity, void *) {
  order_slots(expert_S, slots, experts, capacity, count_E, offset_E1, order_S, inverse_S);
  return 0;
}
