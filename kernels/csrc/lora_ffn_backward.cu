// The middle of a gated feed-forward block with LoRA experts, on a GPU, backward (lora_ffn.cpp says what it computes):
//
//   find_edges   where each expert's slots of a run of tokens begin
//   by_tokens    dc, dzg, dzu and the gates' share; a block takes 64 tokens by some tiles of 128 columns
//   sum_parts    dzg, dzu and the gates' share summed over the blocks of one run of tokens
//   by_experts   dBg, dBu, dAd; a warp takes one expert by 32 columns by 16 ranks and goes through the expert's slots
//
// Both compute hidden rows anew: reading them would cost more than the products do.
#include "lora_ffn_blocks.h"

namespace {

// grid: (runs of tokens, splits of the columns)
template <class T, bool kQuads>
__global__ void __launch_bounds__(kThreads, kBlocks<kQuads>)
by_tokens(Ffn<T> f, Cotangent<T> cotangent, Cut cut, const int *__restrict__ edge, T *__restrict__ dc_gate,
          T *__restrict__ dc_up, float *__restrict__ part) {
  // Of each warp and tile sums (tokens, 16), twice; sums over columns; each warp's share of dgate; groups.
  DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sums = cut.tokens * kSide, n = blockIdx.x * cut.tokens;
  float *total_gate = shared + warp * kTiles * sums, *total_up = total_gate + kWarps * kTiles * sums;
  float *rest = shared + 2 * kWarps * kTiles * sums;
  ColumnSum column_sum(rest);
  auto &dgate = *reinterpret_cast<float (*)[kWarps][kSide]>(rest + ColumnSum::kFloats);
  const Groups groups(&dgate + 1, f.order, edge + static_cast<int64_t>(blockIdx.x) * f.E, n, cut.tokens, f.K, f.E);
  float *dzg = part + blockIdx.y * cut.sums, *dzu = dzg + f.S * f.R, *dgate_S = dzu + f.S * f.R;

  for (int i = lane; i < kTiles * sums; i += 32) total_gate[i] = total_up[i] = 0.f;
  WARP_FENCE();
  const int first_column = blockIdx.y * cut.tiles_a_block * kColumns, end = first_column + cut.tiles_a_block * kColumns;
  for (int column = first_column; column < end && column < f.F; column += kColumns) {
    const int w = column + warp * kWide;
    const bool is_first = column == first_column;
    for (int g = 0; g < groups.count; g++) {
      const Group group = groups.group[g];
      const Slots slots(groups, g, n);
      const Unit<T, kQuads> unit(f, slots, group.expert, w);
      Tile<T> gate[kTiles], up[kTiles];
      float own[2] = {0.f, 0.f};
      if (w < f.F) {
        const Slopes<T, kQuads> slopes(unit, cotangent);
        take_turns(slots.turn[0], slots.turn[1], [&](int i) {
          const int at = (slots.token[i] - n) * kSide + tile_column();
#pragma unroll
          for (int j = 0; j < kTiles; j++) {
            add_four(total_gate + j * sums + at, slopes.gate[j].row(i), 1.f);
            add_four(total_up + j * sums + at, slopes.up[j].row(i), 1.f);
          }
        });
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
          gate[j] = as_type<T>(slopes.gate[j]);
          up[j] = as_type<T>(slopes.up[j]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {  // over the four lanes that share a row
          own[i] = slopes.dgate[i];
          for (int m = 1; m < 4; m *= 2) own[i] += __shfl_xor_sync(kAll, own[i], m);
        }
      }
      if (lane % 4 < 2) dgate[warp][tile_row(lane % 4)] = lane % 4 ? own[1] : own[0];
#pragma unroll 1
      for (int r = 0; r < f.R; r += kSide) {
        const auto target_g = column_sum.target(dzg, group, r, f.R, is_first);
        const auto target_u = column_sum.target(dzu, group, r, f.R, is_first);
        Tile<float> dz_gate, dz_up;
        if (w < f.F)
#pragma unroll
          for (int j = 0; j < kTiles; j++) {
            multiply(dz_gate, gate[j], transposed(unit.columns(f.bg, r, j)));
            multiply(dz_up, up[j], transposed(unit.columns(f.bu, r, j)));
          }
        column_sum.add(dz_gate, target_g, f.R);
        if (r == 0 && threadIdx.x < group.count) {  // after that barrier what the warps wrote is there as well
          float *to = dgate_S + group.first + threadIdx.x, share = is_first ? 0.f : *to;
          for (int from = 0; from < kWarps; from++) share += dgate[from][threadIdx.x];
          *to = share;
        }
        column_sum.add(dz_up, target_u, f.R);
      }
    }
    for (int j = 0; j < kTiles; j++) {
      take_rows<kQuads>(total_gate + j * sums, n, cut.tokens, f.N, f.F, w + j * kSide, dc_gate);
      take_rows<kQuads>(total_up + j * sums, n, cut.tokens, f.N, f.F, w + j * kSide, dc_up);
    }
  }
}

// grid: (experts, tiles of 128 columns, chunks of 16 ranks): blocks that run together read the same columns of c and dU
template <class T, bool kQuads>
__global__ void __launch_bounds__(kThreads, kBlocks<kQuads>)
by_experts(Ffn<T> f, Cotangent<T> cotangent, T *__restrict__ dbg, T *__restrict__ dbu, T *__restrict__ dad) {
  const int e = blockIdx.x, w = blockIdx.y * kColumns + (threadIdx.x >> 5) * kWide, r = blockIdx.z * kSide;
  if (w >= f.F) return;
  const int begin = static_cast<int>(f.offset[e]), end = static_cast<int>(f.offset[e + 1]);
  Tile<float> sum_gate[kTiles], sum_up[kTiles], sum_down[kTiles];
  Slots next;
  if (begin < end) next = Slots(f.order, f.K, begin, end);
  for (int from = begin; from < end; from += kGroup) {
    const Slots slots = next;
    if (end - from > kGroup) next = Slots(f.order, f.K, from + kGroup, end);  // a turn ahead: nothing waits for it
    const Unit<T, kQuads> unit(f, slots, e, w);
    const Slopes<T, kQuads> slopes(unit, cotangent);
    const Tile<T> zg = transposed(unit.narrow(f.zg, r)), zu = transposed(unit.narrow(f.zu, r));
    const Tile<T> dzd = transposed(unit.narrow(cotangent.dzd, r));
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      multiply(sum_gate[j], transposed(as_type<T>(slopes.gate[j])), zg);
      multiply(sum_up[j], transposed(as_type<T>(slopes.up[j])), zu);
      multiply(sum_down[j], dzd, transposed(as_type<T>(slopes.h[j])));
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int first = w + j * kSide, column = first + tile_row(i), rank = r + tile_row(i);
      const int64_t wide_first = (static_cast<int64_t>(e) * f.F + column) * f.R;
      const int ranks = column < f.F ? f.R : 0, columns = rank < f.R ? f.F : 0;
      store_four<kQuads>(dbg + wide_first, ranks, r + tile_column(), sum_gate[j].row(i));
      store_four<kQuads>(dbu + wide_first, ranks, r + tile_column(), sum_up[j].row(i));
      T *row = dad + (static_cast<int64_t>(e) * f.R + rank) * f.F;
      store_four<kQuads>(row, columns, first + tile_column(), sum_down[j].row(i));
    }
}

}  // namespace

EXPORT int mmmoe_lora_ffn_backward(const void *c_gate, const void *c_up, const float *zg, const float *zu,
                                   const void *bg, const void *bu, const void *ad, const float *gate,
                                   const int64_t *order, const int64_t *offset, const void *du, const float *dzd,
                                   void *dc_gate, void *dc_up, float *dzg, float *dzu, float *dgate, void *dbg,
                                   void *dbu, void *dad, float *work, int64_t N, int64_t K, int64_t E, int64_t R,
                                   int64_t F, int64_t begin, int64_t width, int64_t columns, int64_t, int64_t stride,
                                   int64_t activation, int64_t type, void *raw_stream) {
  if (!is_sound(N, K, E, R, F, activation) || !is_whole(F, begin, width, columns, stride))
    return kBadArgument;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const Cut cut(N, K, E, R, F, true);
  const bool is_quads = are_quads(
      R, F, {c_gate, c_up, zg, zu, bg, bu, ad, du, dzd, dc_gate, dc_up, dbg, dbu, dad});
  return by_type_and_width(type, is_quads, [&](auto element, auto quads) {
    using T = decltype(element);
    const Ffn<T> f(c_gate, c_up, zg, zu, bg, bu, ad, gate, order, offset, N, K, E, R, F, activation);
    const Cotangent<T> cotangent = {static_cast<const T *>(du), dzd};
    if (N > 0) {
      int *edge = reinterpret_cast<int *>(work);
      LAUNCH(find_edges, parts(cut.edges, kThreads), kThreads, 0, stream, order, offset, edge, N, f.K, f.E,
             cut.tokens, cut.runs);
      const auto kernel = by_tokens<T, decltype(quads)::value>;
      const size_t shared = cut.shared(2, K, E);
      if (const cudaError_t refused = allow_shared(kernel, shared)) return static_cast<int>(refused);
      LAUNCH(kernel, dim3(cut.runs, cut.splits), kThreads, shared, stream, f, cotangent, cut, edge,
             static_cast<T *>(dc_gate), static_cast<T *>(dc_up), work + cut.edges);
      LAUNCH(sum_parts, parts(cut.sums, kThreads), kThreads, 0, stream, work + cut.edges, cut.splits, cut.sums,
             f.S * R, dzg, dzu, dgate);
    }
    const auto kernel = by_experts<T, decltype(quads)::value>;
    LAUNCH(kernel, dim3(f.E, parts(F, kColumns), parts(R, kSide)), kThreads, 0, stream, f, cotangent,
           static_cast<T *>(dbg), static_cast<T *>(dbu), static_cast<T *>(dad));
    return static_cast<int>(last_error());
  });
}
