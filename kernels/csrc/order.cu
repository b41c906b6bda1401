// The stable order of slots whose experts are given; order.h tells how.
#include "order.h"

namespace {

__global__ void __launch_bounds__(kThreads)
rank_given(const int64_t *expert_S, int32_t *rank_S, int32_t *tile_count, int64_t S, int E) {
  DYNAMIC_SHARED(int, shared);
  int *expert_of = shared;               // [kMostTileSlots]
  int *count = shared + kMostTileSlots;  // [kWarps][E]
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kMostTileSlots;
  const int slots = static_cast<int>(S - first < kMostTileSlots ? S - first : kMostTileSlots);
  for (int i = threadIdx.x; i < kWarps * E; i += kThreads) count[i] = 0;
  for (int i = threadIdx.x; i < slots; i += kThreads) expert_of[i] = known(expert_S[first + i], E);
  rank_tile(expert_of, count, slots, first, E, rank_S, tile_count + blockIdx.x * static_cast<int64_t>(E));
}

}  // namespace

// Number of int32 that an order of S slots over E experts wants as workspace.
EXPORT int64_t mmmoe_order_workspace(int64_t S, int64_t E) { return (S + kLeastTile - 1) / kLeastTile * E + S; }

EXPORT int mmmoe_order(const int64_t *expert, int64_t *count, int64_t *offset, int64_t *order, int64_t *inverse,
                       int32_t *workspace, int64_t S, int64_t num_experts, int64_t capacity, void *raw_stream) {
  if (S < 0 || S >= (int64_t{1} << 31) || num_experts < 1 || num_experts > kMostExperts || capacity < 1)
    return kBadArgument;
  const int E = static_cast<int>(num_experts);
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const int64_t tiles = (S + kMostTileSlots - 1) / kMostTileSlots;
  int32_t *tile_count = workspace, *rank = workspace + tiles * E;
  if (S > 0)
    LAUNCH(rank_given, static_cast<unsigned>(tiles), kThreads, rank_tile_bytes(E), stream, expert, rank, tile_count, S,
           E);
  launch_scan_and_place(expert, rank, tile_count, nullptr, count, offset, order, inverse, S, E, kMostTileSlots,
                        capacity, stream);
  return last_error();
}
