// The register tiles that lora_ffn.cpp is made of: a few slots by one span of hidden columns, forward and backward.
//
// A tile adds up all projections of its slots in registers, goes on to the activation there, and only then writes. Rows
// of tokens lie in copies of one span by one block of tokens, (tokens, kWidth), which stay in the cache; rows of slots
// in chunks, (kChunk, kWidth), beside them. What is narrower is filled up with zeros, so no tile has a rest of columns.
// Ranks of zg, zu and dzd come as (R, kTile) for each tile.
#pragma once

#include "small_products.h"

namespace {

constexpr int64_t kWidth = 128;   // columns of a span: with 64, walks of page tables cost the backward 8 %
constexpr int64_t kChunk = 32;    // slots of one expert worked on together
constexpr int64_t kRankPad = 16;  // ranks are padded to a multiple of this, whole vectors of any type
constexpr int kTile = 8;          // slots of a register tile: 3 projections of 8 rows take 24 of AVX-512's 32 registers

enum Activation : int { kSilu = 0, kGeluTanh = 1 };

// 1 / (1 + exp(-q)), to a few units in the last place.
template <class T>
inline Vector<T> sigmoid(Vector<T> q) {
  if constexpr (sizeof(T) == 4) {
    using Int = Vector<int32_t>;
    const Vector<T> most = Vector<T>{} + 87.f;
    q = q > most ? most : q;
    q = q < -most ? -most : q;
    const Vector<T> n = (q * -1.44269504f + 12582912.f) - 12582912.f;
    const Vector<T> r = (-q - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<T> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.f);
    Int bits;
    memcpy(&bits, &p, sizeof(p));
    bits += __builtin_convertvector(n, Int) << 23;
    memcpy(&p, &bits, sizeof(p));
    return 1.f / (1.f + p);
  } else {
    Vector<T> s;
    for (int i = 0; i < VectorOf<T>::lanes; i++) {
      const T e = exp_below(-std::fabs(q[i]));
      s[i] = (q[i] >= 0 ? T(1) : e) / (1 + e);
    }
    return s;
  }
}

// act(x) = x * sigmoid(q(x)), with q(x) = x or that of the tanh form of GELU; and its slope.
template <class T>
struct Gate {
  Vector<T> value, slope;
};
template <class T, int kActivation>
inline Gate<T> activate(Vector<T> x) {
  constexpr T a = T(1.5957691216057308), b = T(0.044715);
  if constexpr (kActivation == kGeluTanh) {
    const Vector<T> s = sigmoid<T>(a * x * (T(1) + b * x * x)), value = x * s;
    return {value, s + value * (T(1) - s) * (a + (3 * a * b) * x * x)};
  } else {
    const Vector<T> s = sigmoid<T>(x), value = x * s;
    return {value, s + value * (T(1) - s)};
  }
}

// total[i] += sum over r of z[r][i] m[r] for one vector of columns of kP projections at once
template <class T, int kI, int kP>
inline void project(Vector<T> (*total)[kI], const T *const *z, const T *const *m, int64_t R) {
  for (int64_t r = 0; r < R; r++) {
    Vector<T> right[kP];
    for (int q = 0; q < kP; q++) right[q] = load(m[q] + r * kWidth);
    for (int q = 0; q < kP; q++)
      for (int i = 0; i < kI; i++) total[q][i] += z[q][r * kTile + i] * right[q];
  }
}

// One expert's factors over a span: Bg, Bu (R, kWidth), and the other way round, ranks padded, (kWidth, padded).
template <class T>
struct Factors {
  T *bg, *bu, *ad, *bg_by_rank, *bu_by_rank, *ad_by_rank;
};

// Rows of tokens in a span; at[i] is where the row of a tile's slot i begins. Beyond `count` stand rows again that are
// not written.
template <class T>
struct Rows {
  T *c_gate, *c_up, *u;            // u: the sum of the forward, its gradient in the backward
  T *dc_gate = nullptr, *dc_up = nullptr;
};

// h of a tile's slots, and u += gate h.
template <class T, int kActivation, int kI>
void forward_tile(const Rows<T> &rows, const int64_t *at, int count, const T *gate, const T *const *z,
                  const Factors<T> &f, int64_t R, T *h) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int64_t w = 0; w < kWidth; w += lanes) {
    Vector<T> total[2][kI];
    for (int i = 0; i < kI; i++) {
      total[0][i] = load(rows.c_gate + at[i] + w);
      total[1][i] = load(rows.c_up + at[i] + w);
    }
    const T *m[2] = {f.bg + w, f.bu + w};
    project<T, kI, 2>(total, z, m, R);
    for (int i = 0; i < kI; i++) {
      const Vector<T> out = activate<T, kActivation>(total[0][i]).value * total[1][i];
      store<T>(h + i * kWidth + w, out);
      if (i < count) store<T>(rows.u + at[i] + w, load(rows.u + at[i] + w) + gate[i] * out);
    }
  }
}

// h of a tile's slots again, the gradients of both pre-activations, those added to the tokens' rows, and du . h.
template <class T, int kActivation, int kI>
void backward_tile(const Rows<T> &rows, const int64_t *at, int count, const T *gate, const T *const *z,
                   const Factors<T> &f, int64_t R, T *h, T *dgate_pre, T *dup_pre, T *dots, bool is_first) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int64_t w = 0; w < kWidth; w += lanes) {
    Vector<T> total[3][kI];
    for (int i = 0; i < kI; i++) {
      total[0][i] = load(rows.c_gate + at[i] + w);
      total[1][i] = load(rows.c_up + at[i] + w);
      total[2][i] = gate[i] * load(rows.u + at[i] + w);
    }
    const T *m[3] = {f.bg + w, f.bu + w, f.ad + w};
    project<T, kI, 3>(total, z, m, R);
    for (int i = 0; i < kI; i++) {
      const Gate<T> a = activate<T, kActivation>(total[0][i]);
      const Vector<T> out = a.value * total[1][i];
      const Vector<T> dg = total[2][i] * total[1][i] * a.slope, du = total[2][i] * a.value;
      store<T>(h + i * kWidth + w, out);
      store<T>(dgate_pre + i * kWidth + w, dg);
      store<T>(dup_pre + i * kWidth + w, du);
      if (i >= count) continue;
      store<T>(rows.dc_gate + at[i] + w, load(rows.dc_gate + at[i] + w) + dg);
      store<T>(rows.dc_up + at[i] + w, load(rows.dc_up + at[i] + w) + du);
      const Vector<T> dot = out * load(rows.u + at[i] + w);
      T *sum = dots + i * kRankPad;
      store<T>(sum, is_first && w == 0 ? dot : load(sum) + dot);
    }
  }
}

// part[i] += row[i] M for a tile's rows, M being (kWidth, padded); the first span of a stripe begins the sum.
template <class T, int kI>
void dot_tile(const T *rows, int count, const T *m, int64_t padded, T *part, bool is_first) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int64_t r = 0; r < padded; r += lanes) {
    Vector<T> total[kI] = {};
    if (!is_first)
      for (int i = 0; i < count; i++) total[i] = load(part + i * padded + r);
    for (int64_t w = 0; w < kWidth; w++) {
      const Vector<T> right = load(m + w * padded + r);
      for (int i = 0; i < kI; i++) total[i] += rows[i * kWidth + w] * right;
    }
    for (int i = 0; i < count; i++) store<T>(part + i * padded + r, total[i]);
  }
}

// total[r] += sum over i of z[i][r] row[i] for kR ranks
template <class T, int kR>
void outer_ranks(const T *z, int64_t R, const T *rows, int64_t count, T *total) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int64_t w = 0; w < kWidth; w += lanes) {
    Vector<T> sums[kR];
    for (int r = 0; r < kR; r++) sums[r] = load(total + r * kWidth + w);
    for (int64_t i = 0; i < count; i++) {
      const Vector<T> right = load(rows + i * kWidth + w);
      for (int r = 0; r < kR; r++) sums[r] += z[i * R + r] * right;
    }
    for (int r = 0; r < kR; r++) store<T>(total + r * kWidth + w, sums[r]);
  }
}

// The same for any number of ranks.
template <class T>
void outer(const T *z, int64_t R, const T *rows, int64_t count, T *total) {
  int64_t r = 0;
  for (; r + 16 <= R; r += 16) outer_ranks<T, 16>(z + r, R, rows, count, total + r * kWidth);
  for (; r + 4 <= R; r += 4) outer_ranks<T, 4>(z + r, R, rows, count, total + r * kWidth);
  for (; r < R; r++) outer_ranks<T, 1>(z + r, R, rows, count, total + r * kWidth);
}

}  // namespace
