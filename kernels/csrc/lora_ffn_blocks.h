// How the work of lora_ffn is cut into blocks, and how they sum: over a token's slots and over columns, in one order.
#pragma once

#include "lora_ffn.h"

namespace {

// total += weight * value
__device__ inline void add_four(float *total, float4 value, float weight) {
  float4 &sum = *reinterpret_cast<float4 *>(total);
  sum = {sum.x + weight * value.x, sum.y + weight * value.y, sum.z + weight * value.z, sum.w + weight * value.w};
}

// Writes a warp's sums (tokens, 16) of the tokens from n on to their rows, and makes them zeros again.
template <bool kQuads, class T>
__device__ inline void take_rows(float *total, int64_t n, int tokens, int64_t N, int F, int w, T *rows) {
  for (int i = (threadIdx.x & 31) / 4; i < tokens && n + i < N; i += 8) {
    float4 &sum = *reinterpret_cast<float4 *>(total + i * kSide + tile_column());
    store_four<kQuads>(rows + (n + i) * F, F, w + tile_column(), sum);
    sum = {0.f, 0.f, 0.f, 0.f};
  }
  WARP_FENCE();
}

// Sums tiles over the warps of a block, which stand for its columns, by turns in one of two rooms: a warp that is ahead
// writes where nobody reads any more.
struct ColumnSum {
  static constexpr int kFloats = 2 * kWarps * kSide * kSide;
  static constexpr int kOwn = kSide * kSide / kThreads;  // elements of a thread, always the same ones of a tile
  float (*room)[kWarps][kSide][kSide];
  int turn = 0;

  // Where a thread's elements go, if anywhere, and what is there already: read early, so that nothing waits for it.
  struct Target {
    float *first;
    bool is_there[kOwn];
    float sum[kOwn];
  };

  __device__ explicit ColumnSum(float *room) : room(reinterpret_cast<float (*)[kWarps][kSide][kSide]>(room)) {}

  // The ranks from r on of the rows (S, R) of a group, or fewer than a tile's.
  __device__ Target target(float *rows, const Group &group, int r, int R, bool is_first) const {
    Target target;
    const int s = threadIdx.x / kSide, c = r + threadIdx.x % kSide;
    target.first = rows + row_begin(group.first + s, R) + c;
#pragma unroll
    for (int o = 0; o < kOwn; o++) {
      target.is_there[o] = s + o * kThreads / kSide < group.count && c < R;
      target.sum[o] = 0.f;
      if (target.is_there[o] && !is_first) target.sum[o] = target.first[o * kThreads / kSide * R];
    }
    return target;
  }

  // By all threads of a block.
  __device__ void add(const Tile<float> &tile, const Target &target, int R) {
    auto &own = room[turn];
    turn ^= 1;
#pragma unroll
    for (int i = 0; i < 2; i++)
      *reinterpret_cast<float4 *>(&own[threadIdx.x / 32][tile_row(i)][tile_column()]) = tile.row(i);
    __syncthreads();
#pragma unroll
    for (int o = 0; o < kOwn; o++) {
      float sum = target.sum[o];
#pragma unroll
      for (int warp = 0; warp < kWarps; warp++)
        sum += own[warp][threadIdx.x / kSide + o * kThreads / kSide][threadIdx.x % kSide];
      if (target.is_there[o]) target.first[o * kThreads / kSide * R] = sum;
    }
  }
};

inline int parts(int64_t whole, int64_t part) { return static_cast<int>((whole + part - 1) / part); }

// How the kernels that go by tokens are cut: a block takes a run of tokens by some tiles of columns, and leaves what it
// summed over its columns for sum_parts. Two tiles at least, and no more blocks than four waves of three on each of 132
// multiprocessors: what is left grows with the blocks.
struct Cut {
  int tokens, runs, tiles_a_block, splits;
  int64_t edges, sums;  // elements of the workspace: first places, as int; sums over the columns of one split

  Cut(int64_t N, int64_t K, int64_t E, int64_t R, int64_t F, bool is_backward) : tokens(is_backward ? 64 : 128) {
    runs = parts(N, tokens);
    const int tiles = parts(F, kColumns), wanted = runs ? parts(4 * 3 * 132, runs) : 1;
    tiles_a_block = parts(tiles, wanted) > 2 ? parts(tiles, wanted) : 2;
    splits = parts(tiles, tiles_a_block);
    edges = (runs + int64_t{1}) * E;
    sums = N * K * (is_backward ? 2 * R + 1 : R);
  }
  int64_t workspace() const { return edges + splits * sums; }
  // Sums over slots of so many arrays, sums over columns, the gates' share of each warp, groups.
  size_t shared(int arrays, int64_t K, int64_t E) const {
    return sizeof(float) * (arrays * kWarps * tokens * kWide + ColumnSum::kFloats + kWarps * kSide) +
           Groups::bytes(tokens, K, E);
  }
};

// Sums over all columns: of (S, R) rows, and in the backward of a second such array and of (S).
// grid: an element a thread
__global__ void __launch_bounds__(kThreads)
sum_parts(const float *part, int splits, int64_t sums, int64_t rows, float *first, float *second, float *third) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= sums) return;
  float sum = 0.f;
  for (int split = 0; split < splits; split++) sum += part[split * sums + i];
  (i < rows ? first[i] : i < 2 * rows ? second[i - rows] : third[i - 2 * rows]) = sum;
}

inline bool is_sound(int64_t N, int64_t K, int64_t E, int64_t R, int64_t F, int64_t activation) {
  return N >= 0 && K >= 1 && K <= E && E >= 1 && E <= 1024 && R >= 1 && R <= 4096 && F >= 1 &&
         F * R < (int64_t{1} << 31) && N * K < (int64_t{1} << 31) && (activation == 0 || activation == 1);
}

// Whether a call is for all columns, and rows of U and of the gradients of c are whole: here nothing else is known.
inline bool is_whole(int64_t F, int64_t begin, int64_t width, int64_t columns, int64_t stride) {
  return begin == 0 && width == F && columns == F && stride == F;
}

// Whether rows of ranks and of columns can be read four elements at a time, and a warp's columns are all there.
inline bool are_quads(int64_t R, int64_t F, std::initializer_list<const void *> addresses) {
  for (const void *address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16) return false;
  return R % 4 == 0 && F % kWide == 0;
}

// Calls `run` with an element of the type, and whether rows are read four elements at a time: not those of float32,
// which has no matrix units here, so that reading is the least of its work and a kernel less is to be kept.
template <class Run>
int by_type_and_width(int64_t type, bool is_quads, Run run) {
  return by_type(type, [&](auto element) {
    if constexpr (!std::is_same_v<decltype(element), float>)
      if (is_quads) return run(element, std::true_type{});
    return run(element, std::false_type{});
  });
}

}  // namespace
