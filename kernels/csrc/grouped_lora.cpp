// The three small products that LoRA experts are made of, on a CPU, over slots grouped by expert:
//
//   shrink  z[p] = M_e row[token]             A x, and dy B in the backward
//   expand  out[token] += z[p] M_e            B z, and dz A in the backward
//   outer   dM_e = sum over p of z[p] row[token]
//
// with p a place in the order of experts, e its expert and token = order[p] / K. A row of x or y, which is as wide as
// the layer, is never moved: it is read where it lies, and only rank-wide rows are in expert order. M_e is (R, W) as A
// is, or (W, R) as B is (`is_wide_first`). Work is cut so that each number is added up by one thread in one order.
#include "cpu.h"

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 4, kColumns = 4;  // a register tile: rows by vectors
#else
constexpr int kRows = 4, kColumns = 2;
#endif
constexpr int kShrinkRows = 8;      // rows of a shrink tile whose ranks fill one vector
constexpr int64_t kSpan = 256;      // columns worked on while they stay in the nearest cache
constexpr int64_t kTileSlots = 64;  // slots of an expert that a tile of tokens should hold, to pay for packing M_e
constexpr int64_t kLeastTile = 256;

struct Sizes {
  int64_t N, K, E, R, W;
  bool is_wide_first;
  const int64_t *order, *offset;

  int64_t token(int64_t place) const { return order[place] / K; }
  // Tokens of a tile: enough that an expert's share pays for packing, few enough that their columns stay in the cache.
  int64_t tile() const { return std::min(std::max(kLeastTile, kTileSlots * E / K), std::max<int64_t>(N, 1)); }
  // First place of expert e whose token is not below n.
  int64_t first(int64_t e, int64_t n) const {
    return std::lower_bound(order + offset[e], order + offset[e + 1], n * K) - order;
  }
};

// The same for a square of one vector's length, in registers: each round interleaves the two halves of the rows.
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

// to[c][r] = from[r][c]
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
  Vector<T> total[kShrinkRows] = {};
  for (int64_t w = 0; w < W; w++) {
    const Vector<T> right = load(m + w * m_stride);
    for (int i = 0; i < kShrinkRows; i++) total[i] += row[i][w] * right;
  }
  for (int i = 0; i < kShrinkRows; i++) z[i] = total[i];
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

// M_e from column w on, `width` columns, as (R, width) with the returned stride.
template <class T>
const T *by_column(const T *m_e, const Sizes &s, int64_t w, int64_t width, std::vector<T> &packed, int64_t &stride) {
  if (!s.is_wide_first) {
    stride = s.W;
    return m_e + w;
  }
  stride = kSpan;
  transpose(m_e + w * s.R, s.R, width, s.R, packed.data(), kSpan);
  return packed.data();
}

// M_e as (W, ranks), ranks padded to whole vectors.
template <class T>
const T *by_rank(const T *m_e, const Sizes &s, int64_t padded, std::vector<T> &packed) {
  if (!s.is_wide_first)
    transpose(m_e, s.W, s.R, s.W, packed.data(), padded);
  else if (padded == s.R)
    return m_e;
  else
    for (int64_t w = 0; w < s.W; w++) std::copy_n(m_e + w * s.R, s.R, packed.data() + w * padded);
  return packed.data();
}

template <class T>
int shrink(const T *rows_NW, const T *m, T *z_SR, const Sizes &s) {
  constexpr int lanes = VectorOf<T>::lanes;
  const int64_t tile = 4 * s.tile(), tiles = (s.N + tile - 1) / tile;
  const int64_t padded = (s.R + lanes - 1) / lanes * lanes;
#pragma omp parallel
  {
    std::vector<T> packed(s.W * padded);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t e = 0; e < s.E; e++)
      for (int64_t t = 0; t < tiles; t++) {
        const int64_t begin = s.first(e, t * tile), end = s.first(e, (t + 1) * tile);
        if (begin == end) continue;
        const T *m_WR = by_rank(m + e * s.R * s.W, s, padded, packed);
        for (int64_t p = begin; p < end; p += kShrinkRows) {
          const int64_t count = std::min<int64_t>(kShrinkRows, end - p);
          const T *row[kShrinkRows];
          for (int64_t i = 0; i < kShrinkRows; i++) row[i] = rows_NW + s.token(p + std::min(i, count - 1)) * s.W;
          for (int64_t r = 0; r < s.R; r += lanes) {
            Vector<T> total[kShrinkRows];
            dots(row, m_WR + r, padded, total, s.W);
            for (int64_t i = 0; i < count; i++)
              memcpy(z_SR + (p + i) * s.R + r, &total[i], sizeof(T) * std::min<int64_t>(lanes, s.R - r));
          }
        }
      }
  }
  return 0;
}

template <class T>
int expand(const T *base_NW, const T *z_SR, const T *m, T *out_NW, const Sizes &s) {
  const int64_t tile = s.tile(), tiles = (s.N + tile - 1) / tile, spans = (s.W + kSpan - 1) / kSpan;
#pragma omp parallel
  {
    std::vector<T> packed(s.is_wide_first ? s.R * kSpan : 0);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++)
      for (int64_t b = 0; b < spans; b++) {
        const int64_t w = b * kSpan, width = std::min(kSpan, s.W - w);
        const int64_t from = t * tile, to = std::min(s.N, from + tile);
        for (int64_t n = from; n < to; n++) {
          T *out = out_NW + n * s.W + w;
          if (base_NW)
            std::copy_n(base_NW + n * s.W + w, width, out);
          else
            std::fill_n(out, width, T{0});
        }
        for (int64_t e = 0; e < s.E; e++) {
          const int64_t begin = s.first(e, from), end = s.first(e, to);
          if (begin == end) continue;
          int64_t stride;
          const T *m_RW = by_column(m + e * s.R * s.W, s, w, width, packed, stride);
          for (int64_t p = begin; p < end; p += kRows) {
            T *out[kRows];
            const T *z[kRows];
            const int64_t count = std::min<int64_t>(kRows, end - p);
            for (int64_t i = 0; i < count; i++) out[i] = out_NW + s.token(p + i) * s.W + w, z[i] = z_SR + (p + i) * s.R;
            switch (count) {
              case 1: accumulate_span<T, 1>(out, z, m_RW, stride, s.R, width); break;
              case 2: accumulate_span<T, 2>(out, z, m_RW, stride, s.R, width); break;
              case 3: accumulate_span<T, 3>(out, z, m_RW, stride, s.R, width); break;
              default: accumulate_span<T, kRows>(out, z, m_RW, stride, s.R, width);
            }
          }
        }
      }
  }
  return 0;
}

template <class T>
int outer(const T *z_SR, const T *rows_NW, T *dm, const Sizes &s) {
  constexpr int64_t kChunk = 128;  // slots whose columns are brought together, so that each is read from memory once
  const int64_t spans = (s.W + kSpan - 1) / kSpan;
#pragma omp parallel
  {
    std::vector<T> chunk(kChunk * kSpan), turned(kChunk * s.R), total(s.R * kSpan);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t e = 0; e < s.E; e++)
      for (int64_t b = 0; b < spans; b++) {
        const int64_t w = b * kSpan, width = std::min(kSpan, s.W - w);
        std::fill(total.begin(), total.end(), T{0});
        for (int64_t p = s.offset[e]; p < s.offset[e + 1]; p += kChunk) {
          const int64_t count = std::min(kChunk, s.offset[e + 1] - p);
          for (int64_t i = 0; i < count; i++) {
            std::copy_n(rows_NW + s.token(p + i) * s.W + w, width, chunk.data() + i * kSpan);
          }
          transpose(z_SR + p * s.R, s.R, count, s.R, turned.data(), kChunk);
          for (int64_t r = 0; r < s.R; r += kRows) {
            T *out[kRows];
            const T *z[kRows];
            const int64_t ranks = std::min<int64_t>(kRows, s.R - r);
            for (int64_t i = 0; i < ranks; i++)
              out[i] = total.data() + (r + i) * kSpan, z[i] = turned.data() + (r + i) * kChunk;
            switch (ranks) {
              case 1: accumulate_span<T, 1>(out, z, chunk.data(), kSpan, count, width); break;
              case 2: accumulate_span<T, 2>(out, z, chunk.data(), kSpan, count, width); break;
              case 3: accumulate_span<T, 3>(out, z, chunk.data(), kSpan, count, width); break;
              default: accumulate_span<T, kRows>(out, z, chunk.data(), kSpan, count, width);
            }
          }
        }
        T *dm_e = dm + e * s.R * s.W;
        for (int64_t r = 0; r < s.R; r++)
          for (int64_t v = 0; v < width; v++)
            dm_e[s.is_wide_first ? (w + v) * s.R + r : r * s.W + w + v] = total[r * kSpan + v];
      }
  }
  return 0;
}

template <class Run>
int by_exact_type(int64_t code, Run run) {
  return code == 0 ? run(float{}) : code == 3 ? run(double{}) : kBadArgument;
}

}  // namespace

EXPORT int mmmoe_lora_shrink(const void *rows, const void *m, const int64_t *order, const int64_t *offset, void *z,
                             int64_t N, int64_t K, int64_t E, int64_t R, int64_t W, int64_t is_wide_first, int64_t type,
                             void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    return shrink(static_cast<const T *>(rows), static_cast<const T *>(m), static_cast<T *>(z),
                  {N, K, E, R, W, is_wide_first != 0, order, offset});
  });
}

// No base (a null pointer) stands for zeros.
EXPORT int mmmoe_lora_expand(const void *base, const void *z, const void *m, const int64_t *order,
                             const int64_t *offset, void *out, int64_t N, int64_t K, int64_t E, int64_t R, int64_t W,
                             int64_t is_wide_first, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    return expand(static_cast<const T *>(base), static_cast<const T *>(z), static_cast<const T *>(m),
                  static_cast<T *>(out), {N, K, E, R, W, is_wide_first != 0, order, offset});
  });
}

EXPORT int mmmoe_lora_outer(const void *z, const void *rows, const int64_t *order, const int64_t *offset, void *dm,
                            int64_t N, int64_t K, int64_t E, int64_t R, int64_t W, int64_t is_wide_first, int64_t type,
                            void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    return outer(static_cast<const T *>(z), static_cast<const T *>(rows), static_cast<T *>(dm),
                 {N, K, E, R, W, is_wide_first != 0, order, offset});
  });
}
