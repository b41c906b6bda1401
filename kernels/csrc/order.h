// The stable order of slots by expert, in three steps that need no atomics, so every run gives the same order:
//
//   rank_tile  a block a tile: each slot's rank among the tile's slots of the same expert, warp by warp
//   scan       one block: ranks of tiles before each tile, kept counts under the capacity, offsets of the experts
//   place      a thread a slot: rank and offset become the place
//
// A slot whose expert is not one of 0 to E - 1, and one beyond its expert's capacity, gets place -1; -1 ends the order.
#pragma once

#include "common.h"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLeastTile = 64;      // slots of a tile at least, for the size of the workspace
constexpr int kMostTileSlots = 512;  // slots of a tile at most
constexpr int kMostExperts = 1024;

// Bytes of shared memory that rank_tile wants: the tile's experts, and counts by warp and expert.
inline size_t rank_tile_bytes(int E) { return sizeof(int) * (kMostTileSlots + kWarps * static_cast<size_t>(E)); }

// The expert's number, or -1 for one that there is not.
__device__ inline int known(int64_t expert, int E) { return expert >= 0 && expert < E ? static_cast<int>(expert) : -1; }

// Called by a whole block. expert_of[i] for i < slots is set, and so is count[w][e] = 0; `first` is the tile's first slot.
__device__ inline void rank_tile(const int *expert_of, int *count, int slots, int64_t first, int E, int32_t *rank_S,
                                 int32_t *tile_count_E) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  __syncthreads();
  // Each warp ranks a run of consecutive slots, 32 at a time.
  const int run = (slots + kThreads - 1) / kThreads * 32;
  const int begin = warp * run, end = begin + run < slots ? begin + run : slots;
  for (int base = begin; base < end; base += 32) {
    const int i = base + lane;
    const int expert = i < end && expert_of[i] >= 0 ? expert_of[i] : -1 - lane;  // lanes without a slot match nobody
    const unsigned same = __match_any_sync(kAll, expert);
    const int before = __popc(same & ((1u << lane) - 1));
    int earlier = 0;
    if (expert >= 0 && before == 0) {  // one lane for all of an expert reads and writes its count
      earlier = count[warp * E + expert];
      count[warp * E + expert] = earlier + __popc(same);
    }
    earlier = __shfl_sync(kAll, earlier, __ffs(same) - 1);
    if (i < end) rank_S[first + i] = expert >= 0 ? earlier + before : -1;
    WARP_FENCE();  // another lane may be the one that reads next
  }
  __syncthreads();

  for (int e = threadIdx.x; e < E; e += kThreads) {
    int sum = 0;
    for (int w = 0; w < kWarps; w++) {
      const int own = count[w * E + e];
      count[w * E + e] = sum;
      sum += own;
    }
    tile_count_E[e] = sum;
  }
  __syncthreads();

  for (int i = begin + lane; i < end; i += 32)
    if (expert_of[i] >= 0) rank_S[first + i] += count[warp * E + expert_of[i]];
}

// One block of parts * E threads' worth of columns: part p of expert e walks its share of the tiles.
__global__ void scan(int32_t *tile_count, int64_t *count_E, int64_t *offset_E, int64_t tiles, int E, int parts,
                     int64_t capacity) {
  DYNAMIC_SHARED(int64_t, shared);  // [parts][E], then [E] kept
  int64_t *kept = shared + static_cast<int64_t>(parts) * E;
  const int64_t share = (tiles + parts - 1) / parts;
  for (int column = threadIdx.x; column < parts * E; column += blockDim.x) {
    const int part = column / E, e = column % E;
    const int64_t end = (part + 1) * share < tiles ? (part + 1) * share : tiles;
    int64_t sum = 0;
    for (int64_t t = part * share; t < end; t++) sum += tile_count[t * E + e];
    shared[column] = sum;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += blockDim.x) {
    int64_t sum = 0;
    for (int part = 0; part < parts; part++) {
      const int64_t own = shared[part * E + e];
      shared[part * E + e] = sum;
      sum += own;
    }
    kept[e] = sum < capacity ? sum : capacity;
    count_E[e] = kept[e];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t sum = 0;
    for (int e = 0; e < E; e++) {
      offset_E[e] = sum;
      sum += kept[e];
    }
    offset_E[E] = sum;
  }
  for (int column = threadIdx.x; column < parts * E; column += blockDim.x) {
    const int part = column / E, e = column % E;
    const int64_t end = (part + 1) * share < tiles ? (part + 1) * share : tiles;
    int64_t sum = shared[column];
    for (int64_t t = part * share; t < end; t++) {
      const int own = tile_count[t * E + e];
      tile_count[t * E + e] = static_cast<int32_t>(sum);
      sum += own;
    }
  }
}

// The gates of slots beyond the capacity become 0, if there are gates.
__global__ void __launch_bounds__(kThreads)
place(const int64_t *expert_S, const int32_t *rank_S, const int32_t *tile_rank, const int64_t *offset_E, float *gate_S,
      int64_t *order_S, int64_t *inverse_S, int64_t S, int E, int tile_slots, int64_t capacity) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot >= S) return;
  const int64_t in_tile = rank_S[slot];  // -1: left out from the beginning
  const int64_t expert = in_tile >= 0 ? expert_S[slot] : 0;
  const int64_t rank = in_tile >= 0 ? in_tile + tile_rank[slot / tile_slots * E + expert] : -1;
  const bool is_kept = rank >= 0 && rank < capacity;
  const int64_t at = is_kept ? offset_E[expert] + rank : -1;
  inverse_S[slot] = at;
  if (is_kept) order_S[at] = slot;
  if (rank >= capacity && gate_S && gate_S[slot] == gate_S[slot]) gate_S[slot] = 0.f;  // a NaN stays
  if (slot >= offset_E[E]) order_S[slot] = -1;  // places that nobody takes, at the end
}

// What follows once a kernel has called rank_tile for every tile.
inline void launch_scan_and_place(const int64_t *expert, int32_t *rank, int32_t *tile_count, float *gate,
                                  int64_t *count, int64_t *offset, int64_t *order, int64_t *inverse, int64_t S, int E,
                                  int tile_slots, int64_t capacity, cudaStream_t stream) {
  const int64_t tiles = (S + tile_slots - 1) / tile_slots;
  const int threads = 1024;
  const int parts = E >= threads ? 1 : threads / E;
  const size_t shared = sizeof(int64_t) * (static_cast<size_t>(parts) * E + E);
  LAUNCH(scan, 1, threads, shared, stream, tile_count, count, offset, tiles, E, parts, capacity);
  if (S == 0) return;
  const unsigned blocks = static_cast<unsigned>((S + kThreads - 1) / kThreads);
  LAUNCH(place, blocks, kThreads, 0, stream, expert, rank, tile_count, offset, gate, order, inverse, S, E, tile_slots,
         capacity);
}

}  // namespace
