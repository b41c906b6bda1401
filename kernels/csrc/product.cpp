// A dense product whose right factor is a frozen layer's weight, on a CPU: out = rows W^T, or rows W, or that added.
//
// The classic scheme (Goto and van de Geijn 2008): of a slice of the inner axis all rows are packed once for all columns,
// and a block of the weight into panels that stay in the second cache; a tile of the result stays in registers while it
// goes over the slice. Each number of the result is added up in one order, which depends on neither the threads nor the
// number of rows. On one core of Zen 4 (116 GFLOP/s at most) a tile alone runs at 113 GFLOP/s, the whole at 107.
#include <cstdlib>
#include <memory>

#include "small_products.h"

namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;  // 24 of 32 registers
#else
constexpr int kTileRows = 6, kTileVectors = 2;   // 12 of 16
#endif
constexpr int64_t kInnerBytes = 2048;       // of a packed row: 12 of them are 24 KiB of the first cache
constexpr int64_t kBlockColumns = 384;      // by kInnerBytes: 768 KiB of the second cache
constexpr int64_t kShares = 4;              // for each thread, so that all end at about the same time

template <class T>
constexpr int64_t kLine = 64 / sizeof(T);
template <class T>
constexpr int64_t kInner = kInnerBytes / sizeof(T);
template <class T>
constexpr int64_t kStride = kInner<T> + kLine<T>;  // not a power of two: rows fall into different sets
template <class T>
constexpr int64_t kPanel = kTileVectors * VectorOf<T>::lanes;

// Memory that begins a cache line, with nothing in it yet.
template <class T>
struct Scratch {
  std::unique_ptr<T, decltype(&std::free)> held;

  explicit Scratch(int64_t size)
      : held(static_cast<T *>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64)), &std::free) {
    want_huge_pages(held.get(), size * sizeof(T));
  }
  T *data() const { return held.get(); }
};

// Rows (M, K) packed: slices of kInner of their columns one after the other, in a slice tiles of kTileRows rows of
// kStride, so that a tile is read in one run. Rows that fill up the last tile are zeros, or anything: no result of theirs
// is written.
template <class T>
struct Packed {
  int64_t M, K;

  int64_t tiles() const { return (M + kTileRows - 1) / kTileRows; }
  int64_t slices() const { return (K + kInner<T> - 1) / kInner<T>; }
  int64_t slice_size() const { return tiles() * kTileRows * kStride<T>; }

  // Packs a slice's tiles; by all threads of a team, which wait for one another.
  void pack(const T *rows, int64_t stride, int64_t k, T *slice) const {
    const int64_t inner = std::min(kInner<T>, K - k);
#pragma omp for
    for (int64_t t = 0; t < tiles(); t++)
      for (int64_t i = t * kTileRows; i < (t + 1) * kTileRows; i++) {
        T *to = slice + i * kStride<T>;
        if (i < M)
          std::copy_n(rows + i * stride + k, inner, to);
        else
          std::fill_n(to, inner, T{0});
      }
  }
};

template <class T>
struct Product {
  const T *rows, *weight;  // rows: (M, K), or as Packed has them
  T *out;
  int64_t M, N, K;
  int64_t rows_stride, weight_stride, out_stride;  // from row to row
  bool is_packed;
  bool is_turned;  // the weight is (N, K), as nn.Linear keeps it; otherwise (K, N)
  bool is_added;

  // Rows that a thread takes at once. The more, the less often the weight is packed: all of them, if one thread runs.
  int64_t share() const {
    const int64_t blocks = (N + kBlockColumns - 1) / kBlockColumns, threads = omp_get_max_threads();
    const int64_t shares = threads == 1 ? 1 : (kShares * threads + blocks - 1) / blocks;
    return std::max<int64_t>((M + shares * kTileRows - 1) / (shares * kTileRows), 1) * kTileRows;
  }
};

// out (kTileRows, kPanel) = or += left right. `ahead` is where a row begins that is wanted soon.
template <class T>
void tile(const T *left, const T *right, int64_t inner, T *out, int64_t stride, int64_t rows, int64_t columns,
          bool adds, const T *ahead) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kTileVectors; j++) __builtin_prefetch(out + i * stride + j * lanes, 1);
  Vector<T> total[kTileRows][kTileVectors] = {};
  const auto add = [&](int64_t k) {
    Vector<T> b[kTileVectors];
    for (int j = 0; j < kTileVectors; j++) b[j] = load(right + k * kPanel<T> + j * lanes);
    for (int i = 0; i < kTileRows; i++)
      for (int j = 0; j < kTileVectors; j++) total[i][j] += left[i * kStride<T> + k] * b[j];
  };
  int64_t k = 0;
  for (; k + kLine<T> <= inner; k += kLine<T>) {
    __builtin_prefetch(ahead + k);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLine<T>; i++) add(k + i);
  }
  for (; k < inner; k++) add(k);
  if (rows == kTileRows && columns == kPanel<T>) {
    for (int i = 0; i < kTileRows; i++)
      for (int j = 0; j < kTileVectors; j++) {
        T *to = out + i * stride + j * lanes;
        store<T>(to, adds ? load(to) + total[i][j] : total[i][j]);
      }
    return;
  }
  T last[kTileRows][kPanel<T>];
  memcpy(last, total, sizeof(last));
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) out[i * stride + j] = adds ? out[i * stride + j] + last[i][j] : last[i][j];
}

// Columns n to n + columns of the weight over an inner block, as panels (inner, kPanel) filled up with zeros.
template <class T>
void pack(const Product<T> &p, int64_t n, int64_t columns, int64_t k, int64_t inner, T *to) {
  const int64_t stride = p.weight_stride;
  for (int64_t j = 0; j < columns; j += kPanel<T>, to += inner * kPanel<T>) {
    const int64_t width = std::min(kPanel<T>, columns - j);
    if (width < kPanel<T>) std::fill_n(to, inner * kPanel<T>, T{0});
    if (p.is_turned)
      transpose(p.weight + (n + j) * stride + k, stride, width, inner, to, kPanel<T>);
    else
      for (int64_t i = 0; i < inner; i++) std::copy_n(p.weight + (k + i) * stride + n + j, width, to + i * kPanel<T>);
  }
}

// Some rows by some columns of one slice: tile by tile, while the weight's part stays in the second cache.
template <class T>
void block(const Product<T> &p, const T *slice, int64_t k, int64_t m, int64_t end, int64_t n, T *right) {
  const int64_t inner = std::min(kInner<T>, p.K - k), columns = std::min(kBlockColumns, p.N - n);
  pack(p, n, columns, k, inner, right);
  for (; m < end; m += kTileRows) {
    const T *left = slice + m * kStride<T>, *ahead = left + kTileRows * kStride<T>;
    for (int64_t j = 0; j < columns; j += kPanel<T>, ahead += kStride<T>)
      tile(left, right + j * inner, inner, p.out + m * p.out_stride + n + j, p.out_stride,
           std::min<int64_t>(kTileRows, end - m), std::min(kPanel<T>, columns - j), p.is_added || k > 0, ahead);
  }
}

template <class T>
void product(const Product<T> &p) {
  const int64_t share = p.share();
  const Packed<T> packed = {p.M, p.K};
  if (!p.is_added && p.M > 0) want_huge_pages(p.out, ((p.M - 1) * p.out_stride + p.N) * sizeof(T));
  const Scratch<T> own(p.is_packed ? 0 : packed.slice_size());
#pragma omp parallel
  {
    const Scratch<T> right(kInner<T> * kBlockColumns);
    for (int64_t k = 0; k < p.K; k += kInner<T>) {
      if (!p.is_packed) packed.pack(p.rows, p.rows_stride, k, own.data());
      const T *slice = p.is_packed ? p.rows + k / kInner<T> * packed.slice_size() : own.data();
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t m = 0; m < p.M; m += share)
        for (int64_t n = 0; n < p.N; n += kBlockColumns)
          block(p, slice, k, m, std::min(p.M, m + share), n, right.data());
    }
  }
}

}  // namespace

// Whether this kernel is faster than the library behind torch.mm, MKL: on AMD's processors with AVX-512, where it was
// measured; on Intel's MKL knows better.
EXPORT int mmmoe_product_pays() {
#if defined(__AVX512F__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") != 0;
#else
  return 0;
#endif
}

// How rows (M, K) lie when they are packed: columns of a slice; elements of a slice; from row to row within it.
EXPORT int mmmoe_packed_layout(int64_t *layout, int64_t M, int64_t K, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    layout[0] = kInner<T>, layout[1] = Packed<T>{M, K}.slice_size(), layout[2] = kStride<T>;
    return 0;
  });
}

EXPORT int mmmoe_pack_rows(const void *rows, void *to, int64_t M, int64_t K, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    const Packed<T> packed = {M, K};
    want_huge_pages(to, packed.slices() * packed.slice_size() * sizeof(T));
#pragma omp parallel
    for (int64_t k = 0; k < K; k += kInner<T>)
      packed.pack(static_cast<const T *>(rows), K, k, static_cast<T *>(to) + k / kInner<T> * packed.slice_size());
    return 0;
  });
}

// rows (M, K), packed or not; weight (N, K) if is_turned and (K, N) otherwise; out (M, N). Strides are from row to row.
EXPORT int mmmoe_product(const void *rows, const void *weight, void *out, int64_t M, int64_t N, int64_t K,
                         int64_t rows_stride, int64_t weight_stride, int64_t out_stride, int64_t is_packed,
                         int64_t is_turned, int64_t is_added, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    product<T>({static_cast<const T *>(rows), static_cast<const T *>(weight), static_cast<T *>(out), M, N, K,
                rows_stride, weight_stride, out_stride, is_packed != 0, is_turned != 0, is_added != 0});
    return 0;
  });
}
