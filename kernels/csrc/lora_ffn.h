// What the kernels of lora_ffn share: the maths of a tile, sums over columns, and how the work is cut into blocks.
//
// A warp works on sixteen columns, a tile of up to sixteen slots of one expert at a time; pre-activations, hidden rows
// and their gradients exist only as such tiles, in registers. Where products are of half types, what enters them (z, h
// and the gradients) is rounded to that type; all sums are float32.
#pragma once

#include "mma.h"
#include "slot_groups.h"

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kColumns = kWarps * kSide;  // of a block at a time
static_assert(kGroup == kSide, "a group is the rows of a tile");

// act(x) = x * sigmoid(a (x + b x^3)): SiLU, or the tanh form of GELU.
struct Activation {
  float a, b;
};
constexpr Activation kActivations[] = {{1.f, 0.f}, {1.5957691216057308f, 0.044715f}};

template <class T>
__device__ inline float sigmoid(float x) {
#ifdef __CUDACC__
  if constexpr (!std::is_same_v<T, float>) return __fdividef(1.f, 1.f + __expf(-x));
#endif
  return 1.f / (1.f + expf(-x));
}

struct Gate {
  float value, slope;
};
template <class T>
__device__ inline Gate activate(Activation act, float x) {
  const float s = sigmoid<T>(act.a * x * (1 + act.b * x * x)), value = x * s;
  return {value, s + value * (1 - s) * act.a * (1 + 3 * act.b * x * x)};
}

// A gated block: c (N, F), Bg and Bu (E, F, R), Ad (E, R, F), zg and zu (S, R) and gate (S) in the order of experts.
template <class T>
struct Ffn {
  const T *c_gate, *c_up, *bg, *bu, *ad;
  const float *zg, *zu, *gate;
  const int64_t *order, *offset;
  int64_t N, S;
  int K, E, R, F;
  Activation act;

  Ffn(const void *c_gate, const void *c_up, const float *zg, const float *zu, const void *bg, const void *bu,
      const void *ad, const float *gate, const int64_t *order, const int64_t *offset, int64_t N, int64_t K, int64_t E,
      int64_t R, int64_t F, int64_t activation)
      : c_gate(static_cast<const T *>(c_gate)), c_up(static_cast<const T *>(c_up)), bg(static_cast<const T *>(bg)),
        bu(static_cast<const T *>(bu)), ad(static_cast<const T *>(ad)), zg(zg), zu(zu), gate(gate), order(order),
        offset(offset), N(N), S(N * K), K(static_cast<int>(K)), E(static_cast<int>(E)), R(static_cast<int>(R)),
        F(static_cast<int>(F)), act(kActivations[activation]) {}
};
template <class T>
struct Cotangent {
  const T *du;       // (N, F)
  const float *dzd;  // (S, R), already with gate and scale
};

// A lane's two rows of the tile that its warp works on.
struct Slots {
  int64_t place[2], token[2];
  int turn[2];  // -1 where there is no slot

  // Of a block's group; of the places of one expert from `from` on.
  __device__ Slots(const Groups &groups, int g, int64_t n) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      place[i] = groups.group[g].first + tile_row(i);
      token[i] = n + groups.token(g, tile_row(i));
      turn[i] = groups.turn(g, tile_row(i));
    }
  }
  template <class T>
  __device__ Slots(const Ffn<T> &f, int64_t from, int64_t end) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      place[i] = from + tile_row(i);
      turn[i] = place[i] < end ? 0 : -1;
      token[i] = is_there(i) ? static_cast<int>(f.order[place[i]]) / f.K : 0;
    }
  }
  __device__ bool is_there(int i) const { return turn[i] >= 0; }
};

// Some slots of one expert by sixteen columns from w on.
template <class T, bool kQuads>
struct Unit {
  const Ffn<T> &f;
  const Slots &slots;
  int64_t expert;
  int w;

  __device__ Unit(const Ffn<T> &f, const Slots &slots, int expert, int w) : f(f), slots(slots), expert(expert), w(w) {}

  // Slots by columns, of rows (N, F); slots by ranks, of rows (S, R).
  __device__ Tile<float> wide(const T *rows) const {
    return load_tile<float, kQuads, T>(w, [&](int, int i) {
      return Row<const T>{rows + slots.token[i] * f.F, slots.is_there(i) ? f.F : 0};
    });
  }
  __device__ Tile<T> narrow(const float *rows, int r) const {
    return load_tile<T, kQuads, float>(r, [&](int, int i) {
      return Row<const float>{rows + slots.place[i] * f.R, slots.is_there(i) ? f.R : 0};
    });
  }
  // Columns by ranks, of (E, F, R); ranks by columns, of (E, R, F).
  __device__ Tile<T> columns(const T *b, int r) const {
    return load_tile<T, kQuads, T>(r, [&](int row, int) {
      return Row<const T>{b + (expert * f.F + w + row) * f.R, w + row < f.F ? f.R : 0};
    });
  }
  __device__ Tile<T> ranks(const T *a, int r) const {
    return load_tile<T, kQuads, T>(w, [&](int row, int) {
      return Row<const T>{a + (expert * f.R + r + row) * f.F, r + row < f.R ? f.F : 0};
    });
  }

  __device__ void project(Tile<float> &gate, Tile<float> &up) const {
    gate = wide(f.c_gate);
    up = wide(f.c_up);
#pragma unroll 1
    for (int r = 0; r < f.R; r += kSide) {
      multiply(gate, narrow(f.zg, r), columns(f.bg, r));
      multiply(up, narrow(f.zu, r), columns(f.bu, r));
    }
  }
  __device__ float gate(int i) const { return slots.is_there(i) ? f.gate[slots.place[i]] : 0.f; }
};

// Hidden rows and the gradients of pre-activations, slots by columns; of a gate's gradient, what a lane's columns give.
template <class T, bool kQuads>
struct Slopes {
  Tile<float> h, gate, up;
  float dgate[2] = {0.f, 0.f};

  __device__ Slopes(const Unit<T, kQuads> &unit, const Cotangent<T> &cotangent) {
    unit.project(gate, up);
    const Tile<float> du = unit.wide(cotangent.du);
#pragma unroll 1
    for (int r = 0; r < unit.f.R; r += kSide)
      multiply(h, unit.narrow(cotangent.dzd, r), transposed(unit.ranks(unit.f.ad, r)));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float weight = unit.gate(i);
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const Gate a = activate<T>(unit.f.act, gate.at(i, c));
        const float dh = weight * du.at(i, c) + h.at(i, c), other = up.at(i, c);
        h.at(i, c) = a.value * other;
        gate.at(i, c) = dh * other * a.slope;
        up.at(i, c) = dh * a.value;
        dgate[i] += du.at(i, c) * h.at(i, c);
      }
    }
  }
};

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
    store_four<kQuads>(Row<T>{rows + (n + i) * F, F}, w + tile_column(), sum);
    sum = {0.f, 0.f, 0.f, 0.f};
  }
  WARP_FENCE();
}

// Sums tiles over the warps of a block, which stand for its columns, by turns in one of two rooms: a warp that is ahead
// writes where nobody reads any more.
struct ColumnSum {
  float (*room)[kWarps][kSide][kSide];
  int turn = 0;
  static constexpr int kFloats = 2 * kWarps * kSide * kSide;

  __device__ explicit ColumnSum(float *room) : room(reinterpret_cast<float (*)[kWarps][kSide][kSide]>(room)) {}

  // By all threads; each then calls visit(row, column, sum) for one element, always the same one.
  template <class Visit>
  __device__ void add(const Tile<float> &tile, Visit visit) {
    auto &own = room[turn];
    turn ^= 1;
#pragma unroll
    for (int i = 0; i < 2; i++)
      *reinterpret_cast<float4 *>(&own[threadIdx.x / 32][tile_row(i)][tile_column()]) = tile.row(i);
    __syncthreads();
    const int s = threadIdx.x / kSide, c = threadIdx.x % kSide;
    float sum = 0.f;
#pragma unroll
    for (int warp = 0; warp < kWarps; warp++) sum += own[warp][s][c];
    visit(s, c, sum);
  }
};
static_assert(kThreads == kSide * kSide, "a thread for each element of a tile");

inline int parts(int64_t whole, int64_t part) { return static_cast<int>((whole + part - 1) / part); }

// How the kernels that go by tokens are cut: a block takes a run of tokens by some tiles of columns, and leaves what it
// summed over its columns for sum_parts. Two tiles at least, and no more blocks than four waves of two on each of 132
// multiprocessors: what is left grows with the blocks.
struct Cut {
  int tokens, runs, tiles_a_block, splits;
  int64_t edges, sums;  // elements of the workspace: first places, as int; sums over the columns of one split

  Cut(int64_t N, int64_t K, int64_t E, int64_t R, int64_t F, bool is_backward) : tokens(is_backward ? 64 : 128) {
    runs = parts(N, tokens);
    const int tiles = parts(F, kColumns), wanted = runs ? parts(4 * 2 * 132, runs) : 1;
    tiles_a_block = parts(tiles, wanted) > 2 ? parts(tiles, wanted) : 2;
    splits = parts(tiles, tiles_a_block);
    edges = (runs + int64_t{1}) * E;
    sums = N * K * (is_backward ? 2 * R + 1 : R);
  }
  int64_t workspace() const { return edges + splits * sums; }
  // Sums over slots of so many arrays, sums over columns, the gates' share of each warp, groups.
  size_t shared(int arrays, int64_t K, int64_t E) const {
    return sizeof(float) * (arrays * kWarps * tokens * kSide + ColumnSum::kFloats + kWarps * kSide) +
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
         F < (int64_t{1} << 23) && N * K < (int64_t{1} << 31) && (activation == 0 || activation == 1);
}

// Whether rows of z (float32), of ranks and of columns can be read four elements at a time.
inline bool are_quads(int64_t R, int64_t F, std::initializer_list<const void *> addresses) {
  for (const void *address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16) return false;
  return R % 4 == 0 && F % 4 == 0;
}

// Calls `run` with an element of the type, and whether rows are read four elements at a time: not those of float32, which
// has no matrix units here, so that reading is the least of its work and a kernel less is to be kept.
template <class Run>
int by_type_and_width(int64_t type, bool is_quads, Run run) {
  return by_type(type, [&](auto element) {
    if constexpr (!std::is_same_v<decltype(element), float>)
      if (is_quads) return run(element, std::true_type{});
    return run(element, std::false_type{});
  });
}

}  // namespace
