// A dense product whose right factor is a frozen layer's weight, on a CPU: out = rows W^T, or rows W, or that added.
//
// The classic scheme (Goto and van de Geijn 2008): a block of the weight is packed into panels that stay in the second
// cache, a few rows at a time are packed into the first, and a tile of the result stays in registers while it goes over
// the block's inner axis. Each number of the result is added up in one order, which depends on neither the threads nor
// the number of rows. On one core of Zen 4 (116 GFLOP/s at most) a tile alone runs at 113 GFLOP/s, the whole at 101.
#include "small_products.h"

namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;  // 24 of 32 registers
#else
constexpr int kTileRows = 6, kTileVectors = 2;   // 12 of 16
#endif
constexpr int64_t kInnerBytes = 2048;       // of a packed row: 12 of them are 24 KiB of the first cache
constexpr int64_t kBlockColumns = 384;      // by kInnerBytes: 768 KiB of the second cache; 256 are 1 % slower
constexpr int64_t kShares = 4;              // for each thread, so that all end at about the same time

template <class T>
constexpr int64_t kInner = kInnerBytes / sizeof(T);
template <class T>
constexpr int64_t kStride = kInner<T> + 64 / sizeof(T);  // not a power of two: rows fall into different sets
template <class T>
constexpr int64_t kPanel = kTileVectors * VectorOf<T>::lanes;

template <class T>
struct Product {
  const T *rows, *weight;
  T *out;
  int64_t M, N, K;
  bool is_turned;  // the weight is (N, K), as nn.Linear keeps it; otherwise (K, N)
  bool is_added;

  // Rows that a thread takes at once. The more, the less often the weight is packed: all of them, if one thread runs.
  int64_t share() const {
    const int64_t blocks = (N + kBlockColumns - 1) / kBlockColumns, threads = omp_get_max_threads();
    const int64_t shares = threads == 1 ? 1 : (kShares * threads + blocks - 1) / blocks;
    return std::max<int64_t>((M + shares - 1) / shares, kTileRows);
  }
};

// out (kTileRows, kPanel) = or += left right
template <class T>
void tile(const T *left, const T *right, int64_t inner, T *out, int64_t stride, int64_t rows, int64_t columns,
          bool adds) {
  constexpr int lanes = VectorOf<T>::lanes;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < kTileVectors; j++) __builtin_prefetch(out + i * stride + j * lanes, 1);
  Vector<T> total[kTileRows][kTileVectors] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < inner; k++) {
    Vector<T> b[kTileVectors];
    for (int j = 0; j < kTileVectors; j++) b[j] = load(right + k * kPanel<T> + j * lanes);
    for (int i = 0; i < kTileRows; i++)
      for (int j = 0; j < kTileVectors; j++) total[i][j] += left[i * kStride<T> + k] * b[j];
  }
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
  for (int64_t j = 0; j < columns; j += kPanel<T>, to += inner * kPanel<T>) {
    const int64_t width = std::min(kPanel<T>, columns - j);
    if (width < kPanel<T>) std::fill_n(to, inner * kPanel<T>, T{0});
    if (p.is_turned)
      transpose(p.weight + (n + j) * p.K + k, p.K, width, inner, to, kPanel<T>);
    else
      for (int64_t i = 0; i < inner; i++) std::copy_n(p.weight + (k + i) * p.N + n + j, width, to + i * kPanel<T>);
  }
}

// Asks for one of `parts` parts of the next tile's rows, while this one's are at work.
template <class T>
void ask(const Product<T> &p, int64_t m, int64_t k, int64_t inner, int64_t part, int64_t parts) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t each = (inner / parts + line - 1) / line * line, from = part * each, to = std::min(inner, from + each);
  for (int64_t i = m; i < std::min(m + kTileRows, p.M); i++)
    for (int64_t g = from; g < to; g += line) __builtin_prefetch(p.rows + i * p.K + k + g);
}

template <class T>
void block(const Product<T> &p, int64_t m, int64_t rows, int64_t n, int64_t columns, T *left, T *right) {
  for (int64_t k = 0; k < p.K; k += kInner<T>) {
    const int64_t inner = std::min(kInner<T>, p.K - k);
    pack(p, n, columns, k, inner, right);
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, rows - i);
      for (int64_t r = 0; r < height; r++) std::copy_n(p.rows + (m + i + r) * p.K + k, inner, left + r * kStride<T>);
      for (int64_t j = 0; j < columns; j += kPanel<T>) {
        ask(p, m + i + kTileRows, k, inner, j / kPanel<T>, (columns + kPanel<T> - 1) / kPanel<T>);
        tile(left, right + j * inner, inner, p.out + (m + i) * p.N + n + j, p.N, height,
             std::min(kPanel<T>, columns - j), p.is_added || k > 0);
      }
    }
  }
}

template <class T>
void product(const Product<T> &p) {
  const int64_t share = p.share();
  if (!p.is_added) want_huge_pages(p.out, p.M * p.N * sizeof(T));
#pragma omp parallel
  {
    std::vector<T> room(kTileRows * kStride<T> + kInner<T> * kBlockColumns + kStride<T>);
    T *left = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64 / sizeof(T);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t m = 0; m < p.M; m += share)
      for (int64_t n = 0; n < p.N; n += kBlockColumns)
        block(p, m, std::min(share, p.M - m), n, std::min(kBlockColumns, p.N - n), left, left + kTileRows * kStride<T>);
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

// rows (M, K), weight (N, K) if is_turned and (K, N) otherwise, out (M, N)
EXPORT int mmmoe_product(const void *rows, const void *weight, void *out, int64_t M, int64_t N, int64_t K,
                         int64_t is_turned, int64_t is_added, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    product<T>({static_cast<const T *>(rows), static_cast<const T *>(weight), static_cast<T *>(out), M, N, K,
                is_turned != 0, is_added != 0});
    return 0;
  });
}
