// The slots of a run of tokens, as groups of at most sixteen of one expert: what the rows of a tile stand for.
//
// In expert order the tokens of one expert ascend, so the slots of a run of tokens are one stretch of places for each
// expert, found by bisection. A block keeps a table of its groups, and of each row of a group the token.
#pragma once

#include "first_place.h"

namespace {

constexpr int kGroup = 16;

struct Group {
  int first;  // place; there are less than 2^31
  short expert, count;
};

// What a block keeps in shared memory.
struct Groups {
  Group *group;
  // Of each group sixteen: the token within the run; from bit 8 on, how many slots before are of it too. A row behind
  // the last slot has its token, and -1: it may be computed as well.
  short *row;
  int count;

  static __host__ __device__ int most(int64_t tokens, int64_t K, int64_t E) {
    return static_cast<int>(tokens * K / kGroup + (E < tokens * K ? E : tokens * K));
  }
  static size_t bytes(int64_t tokens, int64_t K, int64_t E) {
    return static_cast<size_t>(most(tokens, K, E)) * (sizeof(Group) + kGroup * sizeof(short));
  }

  __device__ int token(int g, int row_of_group) const { return row[g * kGroup + row_of_group] & 255; }
  // A token may have chosen an expert twice; its slots take turns. -1 where there is no slot.
  __device__ int turn(int g, int row_of_group) const { return row[g * kGroup + row_of_group] >> 8; }

  // By all threads of a block, for the tokens from n on; `edge` as find_edges left it, from the run's beginning on.
  __device__ Groups(void *room, const int64_t *order, const int *edge, int64_t n, int tokens, int K, int E)
      : group(static_cast<Group *>(room)), row(reinterpret_cast<short *>(group + most(tokens, K, E))) {
    __shared__ int total;
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      int known = 0;
      for (int first = 0; first < E; first += 32) {
        const int e = first + lane;
        const int begin = e < E ? edge[e] : 0, end = e < E ? edge[E + e] : 0;
        const int own = (end - begin + kGroup - 1) / kGroup;
        int upto = own;  // groups of the experts up to this lane's
        for (int m = 1; m < 32; m *= 2) {
          const int other = __shfl_up_sync(kAll, upto, m);
          if (lane >= m) upto += other;
        }
        for (int i = 0; i < own; i++) {
          const int place = begin + i * kGroup, count = end - place < kGroup ? end - place : kGroup;
          group[known + upto - own + i] = {place, static_cast<short>(e), static_cast<short>(count)};
        }
        known += __shfl_sync(kAll, upto, 31);
      }
      if (lane == 0) total = known;
    }
    __syncthreads();
    count = total;
    const auto token_at = [&](int place) { return static_cast<int>(order[place]) / K - static_cast<int>(n); };
    for (int i = threadIdx.x; i < count * kGroup; i += blockDim.x) {
      const Group own = group[i / kGroup];
      const bool is_there = i % kGroup < own.count;
      const int place = own.first + (is_there ? i % kGroup : own.count - 1), token = token_at(place);
      int before = is_there ? 0 : -1;
      while (is_there && place - before > own.first && token_at(place - before - 1) == token) before++;
      row[i] = static_cast<short>(token + before * 256);
    }
    __syncthreads();
  }
};

// Calls `add(i)` for a lane's rows i = 0 and 1, those of one token one after another: no sum has two writers at a time.
template <class Add>
__device__ inline void take_turns(int turn_0, int turn_1, Add add) {
  for (int now = 0; __ballot_sync(kAll, turn_0 >= now || turn_1 >= now); now++) {
    if (turn_0 == now) add(0);
    if (turn_1 == now) add(1);
    WARP_FENCE();
  }
}

// edge[run][e] = first place of expert e whose token is not before that run; also for the run behind the last one.
// grid: (runs + 1) * E threads
__global__ void find_edges(const int64_t *order, const int64_t *offset, int *edge, int64_t N, int K, int E,
                           int tokens, int runs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= (runs + int64_t{1}) * E) return;
  const int64_t n = i / E * tokens;
  edge[i] = static_cast<int>(first_place(order, offset, static_cast<int>(i % E), (n < N ? n : N) * K));
}

}  // namespace
