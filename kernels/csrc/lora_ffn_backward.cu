// The middle of a gated feed-forward block with LoRA experts, on a GPU, backward (lora_ffn.cpp says what it computes):
//
//   find_edges   where each expert's slots of a run of tokens begin
//   by_tokens    dc, dzg, dzu and the gates' share; a block takes 64 tokens by some tiles of 128 columns
//   sum_parts    dzg, dzu and the gates' share summed over the blocks of one run of tokens
//   by_experts   dBg, dBu, dAd; a warp takes one expert by 16 columns by 16 ranks and goes through the expert's slots
//
// Both compute hidden rows anew: reading them would cost more than the products do.
#include "lora_ffn.h"

namespace {

// grid: (runs of tokens, splits of the columns)
template <class T, bool kQuads>
__global__ void __launch_bounds__(kThreads, 2)
by_tokens(Ffn<T> f, Cotangent<T> cotangent, Cut cut, const int *__restrict__ edge, T *__restrict__ dc_gate,
          T *__restrict__ dc_up, float *__restrict__ part) {
  DYNAMIC_SHARED(float, shared);  // sums of each warp (tokens, 16), twice; sums over columns; gates' share; groups
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sums = cut.tokens * kSide;
  float *total_gate = shared + warp * sums, *total_up = total_gate + kWarps * sums;
  ColumnSum column_sum(shared + 2 * kWarps * sums);
  auto &dgate = *reinterpret_cast<float (*)[kWarps][kSide]>(shared + 2 * kWarps * sums + ColumnSum::kFloats);
  const int64_t n = static_cast<int64_t>(blockIdx.x) * cut.tokens;
  const Groups groups(&dgate + 1, f.order, edge + static_cast<int64_t>(blockIdx.x) * f.E, n, cut.tokens, f.K, f.E);
  float *dzg = part + blockIdx.y * cut.sums, *dzu = dzg + f.S * f.R, *dgate_S = dzu + f.S * f.R;

  for (int i = lane; i < sums; i += 32) total_gate[i] = total_up[i] = 0.f;
  WARP_FENCE();
  const int first_column = blockIdx.y * cut.tiles_a_block * kColumns, end = first_column + cut.tiles_a_block * kColumns;
  for (int column = first_column; column < end && column < f.F; column += kColumns) {
    const int w = column + warp * kSide;
    const auto leave = [&](float *to, float sum) { *to = column == first_column ? sum : *to + sum; };
    for (int g = 0; g < groups.count; g++) {
      const Group group = groups.group[g];
      const Slots slots(groups, g, n);
      const Unit<T, kQuads> unit(f, slots, group.expert, w);
      Tile<T> gate, up;
      float own[2] = {0.f, 0.f};
      if (w < f.F) {
        const Slopes<T, kQuads> slopes(unit, cotangent);
        take_turns(slots.turn[0], slots.turn[1], [&](int i) {
          const int64_t at = (slots.token[i] - n) * kSide + tile_column();
          add_four(total_gate + at, slopes.gate.row(i), 1.f);
          add_four(total_up + at, slopes.up.row(i), 1.f);
        });
        gate = as_type<T>(slopes.gate);
        up = as_type<T>(slopes.up);
#pragma unroll
        for (int i = 0; i < 2; i++) {  // over the four lanes that share a row
          own[i] = slopes.dgate[i];
          for (int m = 1; m < 4; m *= 2) own[i] += __shfl_xor_sync(kAll, own[i], m);
        }
      }
      if (lane % 4 < 2) dgate[warp][tile_row(lane % 4)] = lane % 4 ? own[1] : own[0];
#pragma unroll 1
      for (int r = 0; r < f.R; r += kSide) {
        const auto leave_row = [&](float *rows, int s, int c, float sum) {
          if (s < group.count && r + c < f.R) leave(rows + static_cast<int64_t>(group.first + s) * f.R + r + c, sum);
        };
        Tile<float> dz;
        if (w < f.F) multiply(dz, gate, transposed(unit.columns(f.bg, r)));
        column_sum.add(dz, [&](int s, int c, float sum) {
          leave_row(dzg, s, c, sum);
          if (r || c || s >= group.count) return;  // what the warps wrote before is there as well
          float share = 0.f;
          for (int from = 0; from < kWarps; from++) share += dgate[from][s];
          leave(dgate_S + group.first + s, share);
        });
        dz = Tile<float>();
        if (w < f.F) multiply(dz, up, transposed(unit.columns(f.bu, r)));
        column_sum.add(dz, [&](int s, int c, float sum) { leave_row(dzu, s, c, sum); });
      }
    }
    take_rows<kQuads>(total_gate, n, cut.tokens, f.N, f.F, w, dc_gate);
    take_rows<kQuads>(total_up, n, cut.tokens, f.N, f.F, w, dc_up);
  }
}

// grid: (experts, tiles of 128 columns, chunks of 16 ranks): blocks that run together read the same columns of c and dU
template <class T, bool kQuads>
__global__ void __launch_bounds__(kThreads, 2)
by_experts(Ffn<T> f, Cotangent<T> cotangent, T *__restrict__ dbg, T *__restrict__ dbu, T *__restrict__ dad) {
  const int e = blockIdx.x, w = (blockIdx.y * kWarps + (threadIdx.x >> 5)) * kSide, r = blockIdx.z * kSide;
  if (w >= f.F) return;
  const int64_t end = f.offset[e + 1];
  Tile<float> sum_gate, sum_up, sum_down;
  Slots next(f, f.offset[e], end);  // a turn ahead, so that nothing waits for it
  for (int64_t from = f.offset[e]; from < end; from += kGroup) {
    const Slots slots = next;
    next = Slots(f, from + kGroup, end);
    const Unit<T, kQuads> unit(f, slots, e, w);
    const Slopes<T, kQuads> slopes(unit, cotangent);
    multiply(sum_gate, transposed(as_type<T>(slopes.gate)), transposed(unit.narrow(f.zg, r)));
    multiply(sum_up, transposed(as_type<T>(slopes.up)), transposed(unit.narrow(f.zu, r)));
    multiply(sum_down, transposed(unit.narrow(cotangent.dzd, r)), transposed(as_type<T>(slopes.h)));
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int64_t column = w + tile_row(i), rank = r + tile_row(i);
    const int64_t wide_first = (e * static_cast<int64_t>(f.F) + column) * f.R;
    const int limit = column < f.F ? f.R : 0;
    store_four<kQuads>(Row<T>{dbg + wide_first, limit}, r + tile_column(), sum_gate.row(i));
    store_four<kQuads>(Row<T>{dbu + wide_first, limit}, r + tile_column(), sum_up.row(i));
    T *row = dad + (e * static_cast<int64_t>(f.R) + rank) * f.F;
    store_four<kQuads>(Row<T>{row, rank < f.R ? f.F : 0}, w + tile_column(), sum_down.row(i));
  }
}

}  // namespace

EXPORT int mmmoe_lora_ffn_backward(const void *c_gate, const void *c_up, const float *zg, const float *zu,
                                   const void *bg, const void *bu, const void *ad, const float *gate,
                                   const int64_t *order, const int64_t *offset, const void *du, const float *dzd,
                                   void *dc_gate, void *dc_up, float *dzg, float *dzu, float *dgate, void *dbg,
                                   void *dbu, void *dad, float *work, int64_t N, int64_t K, int64_t E, int64_t R,
                                   int64_t F, int64_t activation, int64_t type, void *raw_stream) {
  if (!is_sound(N, K, E, R, F, activation)) return kBadArgument;
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
