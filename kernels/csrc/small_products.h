// Products with a small inner size, over rows that lie anywhere: the register tiles that the LoRA kernels are made of.
#pragma once

#include "cpu.h"

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 4, kColumns = 4;  // a register tile: rows by vectors
#else
constexpr int kRows = 4, kColumns = 2;
#endif
constexpr int kDotRows = 8;      // rows of a tile of dot products whose ranks fill one vector
constexpr int64_t kSpan = 256;   // columns worked on while they stay in the nearest cache

// to[c][r] = from[r][c] for a square of one vector's length, in registers: each round interleaves the halves of the rows.
template <class T>
void transpose_square(const T *from, int64_t from_stride, T *to, int64_t to_stride) {
  constexpr int lanes = VectorOf<T>::lanes;
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Vector<Index> low, high;
  for (int i = 0; i < lanes; i++) low[i] = i / 2 + (i % 2) * lanes, high[i] = low[i] + lanes / 2;
  Vector<T> row[lanes], next[lanes];
  for (int i = 0; i < lanes; i++) row[i] = load(from + i * from_stride);
  for (int round = 1; round < lanes; round *= 2) {
    for (int i = 0; i < lanes / 2; i++) {
      next[2 * i] = __builtin_shuffle(row[i], row[i + lanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(row[i], row[i + lanes / 2], high);
    }
    for (int i = 0; i < lanes; i++) row[i] = next[i];
  }
  for (int i = 0; i < lanes; i++) store<T>(to + i * to_stride, row[i]);
}

// The same for any size.
template <class T>
void transpose(const T *from, int64_t from_stride, int64_t rows, int64_t columns, T *to, int64_t to_stride) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  for (int64_t c = 0; c < columns; c += lanes)
    for (int64_t r = 0; r < rows; r += lanes) {
      if (r + lanes <= rows && c + lanes <= columns) {
        transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        continue;
      }
      for (int64_t i = c; i < std::min(c + lanes, columns); i++)
        for (int64_t j = r; j < std::min(r + lanes, rows); j++) to[i * to_stride + j] = from[j * from_stride + i];
    }
}

// z of a few rows for one vector of ranks: M is (W, ranks), read along the ranks
template <class T>
void dots(const T *const *row, const T *m, int64_t m_stride, Vector<T> *z, int64_t W) {
  Vector<T> total[kDotRows] = {};
  for (int64_t w = 0; w < W; w++) {
    const Vector<T> right = load(m + w * m_stride);
    for (int i = 0; i < kDotRows; i++) total[i] += row[i][w] * right;
  }
  for (int i = 0; i < kDotRows; i++) z[i] = total[i];
}

// out[i][w] += sum over r of z[i][r] m[r][w] for kJ vectors of columns
template <class T, int kI, int kJ>
void accumulate(T *const *out, const T *const *z, const T *m, int64_t m_stride, int64_t R) {
  constexpr int lanes = VectorOf<T>::lanes;
  Vector<T> total[kI][kJ];
  for (int i = 0; i < kI; i++)
    for (int j = 0; j < kJ; j++) total[i][j] = load(out[i] + j * lanes);
  for (int64_t r = 0; r < R; r++) {
    Vector<T> right[kJ];
    for (int j = 0; j < kJ; j++) right[j] = load(m + r * m_stride + j * lanes);
    for (int i = 0; i < kI; i++)
      for (int j = 0; j < kJ; j++) total[i][j] += z[i][r] * right[j];
  }
  for (int i = 0; i < kI; i++)
    for (int j = 0; j < kJ; j++) store<T>(out[i] + j * lanes, total[i][j]);
}

// The same for `width` columns and kI rows.
template <class T, int kI>
void accumulate_span(T *const *out, const T *const *z, const T *m, int64_t m_stride, int64_t R, int64_t width) {
  constexpr int lanes = VectorOf<T>::lanes;
  T *at[kI];
  int64_t w = 0;
  for (; w + kColumns * lanes <= width; w += kColumns * lanes) {
    for (int i = 0; i < kI; i++) at[i] = out[i] + w;
    accumulate<T, kI, kColumns>(at, z, m + w, m_stride, R);
  }
  for (; w + lanes <= width; w += lanes) {
    for (int i = 0; i < kI; i++) at[i] = out[i] + w;
    accumulate<T, kI, 1>(at, z, m + w, m_stride, R);
  }
  for (; w < width; w++)
    for (int i = 0; i < kI; i++)
      for (int64_t r = 0; r < R; r++) out[i][w] += z[i][r] * m[r * m_stride + w];
}

// accumulate_span for any number of rows: out_of(i) and z_of(i) are where row i begins. Rows next to one another may be
// the same row of `out`; such ones are not put into one tile.
template <class T, class Out, class Z>
void accumulate_rows(int64_t rows, Out out_of, Z z_of, const T *m, int64_t m_stride, int64_t R, int64_t width) {
  for (int64_t from = 0, count; from < rows; from += count) {
    T *out[kRows];
    const T *z[kRows];
    for (count = 0; count < std::min<int64_t>(kRows, rows - from); count++) {
      out[count] = out_of(from + count);
      z[count] = z_of(from + count);
      if (count && out[count] == out[count - 1]) break;
    }
    switch (count) {
      case 1: accumulate_span<T, 1>(out, z, m, m_stride, R, width); break;
      case 2: accumulate_span<T, 2>(out, z, m, m_stride, R, width); break;
      case 3: accumulate_span<T, 3>(out, z, m, m_stride, R, width); break;
      default: accumulate_span<T, kRows>(out, z, m, m_stride, R, width);
    }
  }
}

// z[i][r] = row[i] . m[.][r] for any number of rows; m is (W, padded), ranks padded to whole vectors.
template <class T, class Row, class Z>
void dot_rows(int64_t rows, Row row_of, const T *m, int64_t padded, Z z_of, int64_t R, int64_t W) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  for (int64_t from = 0; from < rows; from += kDotRows) {
    const int64_t count = std::min<int64_t>(kDotRows, rows - from);
    const T *row[kDotRows];
    for (int64_t i = 0; i < kDotRows; i++) row[i] = row_of(from + std::min(i, count - 1));
    for (int64_t r = 0; r < R; r += lanes) {
      Vector<T> total[kDotRows];
      dots(row, m + r, padded, total, W);
      for (int64_t i = 0; i < count; i++)
        memcpy(z_of(from + i) + r, &total[i], sizeof(T) * std::min(lanes, R - r));
    }
  }
}

template <class Run>
int by_exact_type(int64_t code, Run run) {
  return code == 0 ? run(float{}) : code == 3 ? run(double{}) : kBadArgument;
}

}  // namespace
