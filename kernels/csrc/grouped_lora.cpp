// The three small products that LoRA experts are made of, on a CPU, over slots grouped by expert:
//
//   shrink  z[p] = M_e row[token]             A x, and dy B in the backward
//   expand  out[token] += z[p] M_e            B z, and dz A in the backward
//   outer   dM_e = sum over p of z[p] row[token]
//
// with p a place in the order of experts, e its expert and token = order[p] / K. A row of x or y, which is as wide as
// the layer, is never moved: it is read where it lies, and only rank-wide rows are in expert order. M_e is (R, W) as A
// is, or (W, R) as B is (`is_wide_first`). Work is cut so that each number is added up by one thread in one order.
#include "small_products.h"

namespace {

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
        dot_rows<T>(
            end - begin, [&](int64_t i) { return rows_NW + s.token(begin + i) * s.W; }, m_WR, padded,
            [&](int64_t i) { return z_SR + (begin + i) * s.R; }, s.R, s.W);
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
          if (!base_NW)
            std::fill_n(out, width, T{0});
          else if (base_NW != out_NW)
            std::copy_n(base_NW + n * s.W + w, width, out);
        }
        for (int64_t e = 0; e < s.E; e++) {
          const int64_t begin = s.first(e, from), end = s.first(e, to);
          if (begin == end) continue;
          int64_t stride;
          const T *m_RW = by_column(m + e * s.R * s.W, s, w, width, packed, stride);
          accumulate_rows<T>(
              end - begin, [&](int64_t i) { return out_NW + s.token(begin + i) * s.W + w; },
              [&](int64_t i) { return z_SR + (begin + i) * s.R; }, m_RW, stride, s.R, width);
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
          accumulate_rows<T>(
              s.R, [&](int64_t r) { return total.data() + r * kSpan; },
              [&](int64_t r) { return turned.data() + r * kChunk; }, chunk.data(), kSpan, count, width);
        }
        T *dm_e = dm + e * s.R * s.W;
        for (int64_t r = 0; r < s.R; r++)
          for (int64_t v = 0; v < width; v++)
            dm_e[s.is_wide_first ? (w + v) * s.R + r : r * s.W + w + v] = total[r * kSpan + v];
      }
  }
  return 0;
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

// No base (a null pointer) stands for zeros; `out` may be the base.
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
