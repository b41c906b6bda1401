// The middle of a gated feed-forward block with LoRA experts, on a GPU, forward (lora_ffn.cpp says what it computes):
//
//   find_edges   where each expert's slots of a run of tokens begin
//   hidden       U and zd; a block takes 128 tokens by some tiles of 128 columns, a warp 32 of the columns
//   sum_parts    zd summed over the blocks of one run of tokens
//
// The sum over a token's slots is taken in shared memory, where each warp has its own columns, so nothing is added with
// atomics and no row of S * F exists; zd is summed over warps, then tiles, then blocks, always in the same order.
#include "lora_ffn_blocks.h"

namespace {

// grid: (runs of tokens, splits of the columns)
template <class T, bool kQuads>
__global__ void __launch_bounds__(kThreads, kBlocks<kQuads>)
hidden(Ffn<T> f, Cut cut, const int *__restrict__ edge, T *__restrict__ u, float *__restrict__ part) {
  DYNAMIC_SHARED(float, shared);  // of each warp and tile sums (tokens, 16); sums over columns; groups
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sums = cut.tokens * kSide, n = blockIdx.x * cut.tokens;
  float *total = shared + warp * kTiles * sums;
  ColumnSum column_sum(shared + kWarps * kTiles * sums);
  const Groups groups(shared + kWarps * kTiles * sums + ColumnSum::kFloats, f.order,
                      edge + static_cast<int64_t>(blockIdx.x) * f.E, n, cut.tokens, f.K, f.E);
  float *own_part = part + blockIdx.y * cut.sums;

  for (int i = lane; i < kTiles * sums; i += 32) total[i] = 0.f;
  WARP_FENCE();
  const int first_column = blockIdx.y * cut.tiles_a_block * kColumns, end = first_column + cut.tiles_a_block * kColumns;
  for (int column = first_column; column < end && column < f.F; column += kColumns) {
    const int w = column + warp * kWide;
    const bool is_first = column == first_column;
    for (int g = 0; g < groups.count; g++) {
      const Group group = groups.group[g];
      const Slots slots(groups, g, n);
      const Unit<T, kQuads> unit(f, slots, group.expert, w);
      // What is needed at the end of a turn is asked for at its beginning.
      const float weight[2] = {unit.gate(0), unit.gate(1)};
      auto target = column_sum.target(own_part, group, 0, f.R, is_first);
      Tile<T> h[kTiles], ad[kTiles];
      if (w < f.F) {
        Tile<float> gate[kTiles], up[kTiles];
        unit.project(gate, up);
#pragma unroll
        for (int j = 0; j < kTiles; j++) ad[j] = unit.ranks(f.ad, 0, j);
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) gate[j].at(i, c) = activate<T>(f.act, gate[j].at(i, c)).value * up[j].at(i, c);
          h[j] = as_type<T>(gate[j]);
        }
        take_turns(slots.turn[0], slots.turn[1], [&](int i) {
          const int at = (slots.token[i] - n) * kSide + tile_column();
#pragma unroll
          for (int j = 0; j < kTiles; j++) add_four(total + j * sums + at, gate[j].row(i), weight[i]);
        });
      }
#pragma unroll 1
      for (int r = 0; r < f.R; r += kSide) {
        if (r > 0) {
          target = column_sum.target(own_part, group, r, f.R, is_first);
          if (w < f.F)
#pragma unroll
            for (int j = 0; j < kTiles; j++) ad[j] = unit.ranks(f.ad, r, j);
        }
        Tile<float> zd;
        if (w < f.F)
#pragma unroll
          for (int j = 0; j < kTiles; j++) multiply(zd, h[j], ad[j]);
        column_sum.add(zd, target, f.R);
      }
    }
    for (int j = 0; j < kTiles; j++) take_rows<kQuads>(total + j * sums, n, cut.tokens, f.N, f.F, w + j * kSide, u);
  }
}

}  // namespace

// Elements (of 4 bytes) that the workspace of both launchers must have.
EXPORT int64_t mmmoe_lora_ffn_workspace(int64_t N, int64_t K, int64_t E, int64_t R, int64_t F, int64_t is_backward) {
  return Cut(N, K, E, R, F, is_backward != 0).workspace();
}

EXPORT int mmmoe_lora_ffn(const void *c_gate, const void *c_up, const float *zg, const float *zu, const void *bg,
                          const void *bu, const void *ad, const float *gate, const int64_t *order,
                          const int64_t *offset, void *u, float *zd, float *work, int64_t N, int64_t K, int64_t E,
                          int64_t R, int64_t F, int64_t begin, int64_t width, int64_t columns, int64_t,
                          int64_t stride, int64_t activation, int64_t type, void *raw_stream) {
  if (!is_sound(N, K, E, R, F, activation) || !is_whole(F, begin, width, columns, stride))
    return kBadArgument;
  if (N == 0) return 0;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const Cut cut(N, K, E, R, F, false);
  const bool is_quads = are_quads(R, F, {c_gate, c_up, zg, zu, bg, bu, ad, u});
  return by_type_and_width(type, is_quads, [&](auto element, auto quads) {
    using T = decltype(element);
    const Ffn<T> f(c_gate, c_up, zg, zu, bg, bu, ad, gate, order, offset, N, K, E, R, F, activation);
    int *edge = reinterpret_cast<int *>(work);
    LAUNCH(find_edges, parts(cut.edges, kThreads), kThreads, 0, stream, order, offset, edge, N, f.K, f.E, cut.tokens,
           cut.runs);
    const auto kernel = hidden<T, decltype(quads)::value>;
    const size_t shared = cut.shared(1, K, E);
    if (const cudaError_t refused = allow_shared(kernel, shared)) return static_cast<int>(refused);
    LAUNCH(kernel, dim3(cut.runs, cut.splits), kThreads, shared, stream, f, cut, edge, static_cast<T *>(u),
           work + cut.edges);
    LAUNCH(sum_parts, parts(cut.sums, kThreads), kThreads, 0, stream, work + cut.edges, cut.splits, cut.sums, cut.sums,
           zd, nullptr, nullptr);
    return static_cast<int>(last_error());
  });
}
