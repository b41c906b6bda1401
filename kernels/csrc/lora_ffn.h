// What the kernels of lora_ffn compute: the maths of a tile, forward and backward.
//
// A warp works on two times sixteen columns, on up to sixteen slots of one expert at a time; pre-activations, hidden
// rows and their gradients exist only as such tiles, in registers. Where products are of half types, what enters them
// (z, h and the gradients) is rounded to that type; all sums are float32.
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

// Some slots of one expert by the columns of a warp, which begin at w; j is one of its tiles. If kQuads, all columns
// are there. If not, what is beyond the last one is zero in c, in dU and in Ad, and so are gradients there.
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

}  // namespace
