// What the kernels of lora_ffn share: the maths of a tile, sums over columns, and how the work is cut into blocks.
//
// A warp works on two times sixteen columns, on up to sixteen slots of one expert at a time; pre-activations, hidden rows
// and their gradients exist only as such tiles, in registers. Where products are of half types, what enters them (z, h
// and the gradients) is rounded to that type; all sums are float32.
#pragma once

#include "mma.h"
#include "slot_groups.h"

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTiles = 2;  // of a warp: what it knows of its slots serves both
constexpr int kWide = kTiles * kSide;
constexpr int kColumns = kWarps * kWide;  // of a block at a time
template <bool kQuads>
constexpr int kBlocks = kQuads ? 3 : 2;  // on a multiprocessor, as many as registers and shared memory allow
static_assert(kGroup == kSide, "a group is the rows of a tile");

// act(x) = x * sigmoid(a (x + b x^3)): SiLU, or the tanh form of GELU.
struct Activation {
  float a, b;
};
constexpr Activation kActivations[] = {{1.f, 0.f}, {1.5957691216057308f, 0.044715f}};

// 1 / (1 + 2^x); for half types by the two instructions that approximate it to some 2^-22.
template <class T>
__device__ inline float sigmoid_of_power(float x) {
#ifdef __CUDACC__
  if constexpr (!std::is_same_v<T, float>) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.f + power));
    return result;
  }
#endif
  return 1.f / (1.f + exp2f(x));
}

struct Gate {
  float value, slope;
};
template <class T>
__device__ inline Gate activate(Activation act, float x) {
  constexpr float kLog2OfE = 1.4426950408889634f;
  const float square = x * x, s = sigmoid_of_power<T>(x * (-kLog2OfE * act.a) * (1 + act.b * square)), value = x * s;
  return {value, s + (value - value * s) * (act.a + 3 * act.a * act.b * square)};
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
  int place[2], token[2];
  int turn[2];  // -1: there is no slot; then the row stands for another one, whose z is taken for zeros

  Slots() = default;
  // Of a block's group; of the places of one expert from `from` on, of which there is one at least.
  __device__ Slots(const Groups &groups, int g, int n) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      place[i] = groups.group[g].first + min(tile_row(i), groups.group[g].count - 1);
      token[i] = n + groups.token(g, tile_row(i));
      turn[i] = groups.turn(g, tile_row(i));
    }
  }
  __device__ Slots(const int64_t *order, int K, int from, int end) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      place[i] = min(from + tile_row(i), end - 1);
      token[i] = static_cast<int>(order[place[i]]) / K;
      turn[i] = from + tile_row(i) < end ? 0 : -1;
    }
  }
  __device__ bool is_there(int i) const { return turn[i] >= 0; }
};

// Where row i of rows of that width begins: one instruction, as neither is negative.
__device__ inline int64_t row_begin(int i, int width) {
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<unsigned>(i)) * static_cast<unsigned>(width));
}

// Some slots of one expert by the columns of a warp, which begin at w; j is one of its tiles. If kQuads, all columns are
// there. If not, what is beyond the last one is zero in c, in dU and in Ad, and so are gradients there.
template <class T, bool kQuads>
struct Unit {
  const Ffn<T> &f;
  const Slots &slots;
  int64_t factor;  // where the expert's part of a factor begins
  int w;

  __device__ Unit(const Ffn<T> &f, const Slots &slots, int expert, int w)
      : f(f), slots(slots), factor(row_begin(expert, f.F * f.R)), w(w) {}

  // Slots by columns, of rows (N, F); slots by ranks, of rows (S, R).
  __device__ Tile<T> wide(const T *rows, int j) const {
    return load_tile<T, kQuads, Beyond::anything>(
        w + j * kSide, [&](int, int i) { return rows + row_begin(slots.token[i], f.F); },
        [&](int) { return f.F; });
  }
  __device__ Tile<T> narrow(const float *rows, int r) const {
    return load_tile<T, kQuads, Beyond::zeros>(
        r, [&](int, int i) { return rows + row_begin(slots.place[i], f.R); },
        [&](int i) { return slots.is_there(i) ? f.R : 0; });
  }
  // Columns by ranks, of (E, F, R); ranks by columns, of (E, R, F). Ranks beyond the last meet zeros, or are not kept.
  __device__ Tile<T> columns(const T *b, int r, int j) const {
    return load_tile<T, kQuads, Beyond::anything>(
        r,
        [&](int row, int) {
          const int column = w + j * kSide + row;
          return b + factor + row_begin(kQuads ? column : min(column, f.F - 1), f.R);
        },
        [&](int) { return f.R; });
  }
  __device__ Tile<T> ranks(const T *a, int r, int j) const {
    return load_tile<T, kQuads, Beyond::anything>(
        w + j * kSide, [&](int row, int) { return a + factor + row_begin(min(r + row, f.R - 1), f.F); },
        [&](int) { return f.F; });
  }

  // Adds what the experts do to zeros, and then c, which is under way meanwhile.
  __device__ void project(Tile<float> (&gate)[kTiles], Tile<float> (&up)[kTiles]) const {
    Tile<T> c_gate[kTiles], c_up[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      c_gate[j] = wide(f.c_gate, j);
      c_up[j] = wide(f.c_up, j);
    }
#pragma unroll 1
    for (int r = 0; r < f.R; r += kSide) {
      const Tile<T> zg = narrow(f.zg, r), zu = narrow(f.zu, r);
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        multiply(gate[j], zg, columns(f.bg, r, j));
        multiply(up[j], zu, columns(f.bu, r, j));
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      add_tile(gate[j], c_gate[j]);
      add_tile(up[j], c_up[j]);
    }
  }
  __device__ float gate(int i) const { return slots.is_there(i) ? f.gate[slots.place[i]] : 0.f; }
};

// Hidden rows and the gradients of pre-activations, slots by columns; of a gate's gradient, what a lane's columns give.
template <class T, bool kQuads>
struct Slopes {
  Tile<float> h[kTiles], gate[kTiles], up[kTiles];
  float dgate[2] = {0.f, 0.f};

  __device__ Slopes(const Unit<T, kQuads> &unit, const Cotangent<T> &cotangent) {
    const float weight[2] = {unit.gate(0), unit.gate(1)};
    Tile<T> du[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; j++) du[j] = unit.wide(cotangent.du, j);
    unit.project(gate, up);
#pragma unroll 1
    for (int r = 0; r < unit.f.R; r += kSide) {
      const Tile<T> dzd = unit.narrow(cotangent.dzd, r);
#pragma unroll
      for (int j = 0; j < kTiles; j++) multiply(h[j], dzd, transposed(unit.ranks(unit.f.ad, r, j)));
    }
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const Gate a = activate<T>(unit.f.act, gate[j].at(i, c));
          const float own_du = to_float(du[j].at(i, c)), other = up[j].at(i, c);
          const float dh = weight[i] * own_du + h[j].at(i, c);
          h[j].at(i, c) = a.value * other;
          gate[j].at(i, c) = dh * other * a.slope;
          up[j].at(i, c) = dh * a.value;
          dgate[i] += own_du * h[j].at(i, c);
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

// Whether rows of ranks and of columns can be read four elements at a time, and a warp's columns are all there.
inline bool are_quads(int64_t R, int64_t F, std::initializer_list<const void *> addresses) {
  for (const void *address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16) return false;
  return R % 4 == 0 && F % kWide == 0;
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
