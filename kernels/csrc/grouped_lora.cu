// The three small products that LoRA experts are made of, on a GPU, over slots grouped by expert (see grouped_lora.cpp):
//
//   shrink  z[p] = M_e row[token]                   a warp takes four slots of one expert, lanes go along the row
//   expand  out[token] = base + sum of z[p] M_e     a block takes 64 tokens by 128 columns, whose sums stay on the chip
//   outer   dM_e = sum over p of z[p] row[token]    a block takes one expert by 256 columns, a thread a column
//
// M_e is (R, W) or, wide axis first, (W, R); ranks go in chunks of 16, each thread keeping a chunk in registers. Rank-wide
// rows z are float32. No row as wide as the layer is moved, nothing is added with atomics, no sum changes between runs.
#include "first_place.h"

namespace {

constexpr int kChunk = 16;  // ranks a thread works on at a time
constexpr int kThreads = 256;
constexpr int kMostExperts = 1024;

template <class T>
struct Factor {
  const T *m;  // (E, R, W) or (E, W, R)
  int R;
  int64_t W;
  bool is_wide_first, is_aligned;

  Factor(const void *m, int64_t R, int64_t W, bool is_wide_first)
      : m(static_cast<const T *>(m)), R(static_cast<int>(R)), W(W), is_wide_first(is_wide_first),
        is_aligned(R % (16 / sizeof(T)) == 0 && reinterpret_cast<uintptr_t>(m) % 16 == 0) {}

  // M_e[r][w] for the ranks from r on; zeros beyond R.
  __device__ void ranks(int e, int64_t w, int r, float value[kChunk]) const {
    const T *m_e = m + static_cast<int64_t>(e) * R * W;
    if (is_wide_first && is_aligned) {
      constexpr int count = 16 / sizeof(T);
#pragma unroll
      for (int i = 0; i < kChunk; i += count) {
        uint4 bits = {0, 0, 0, 0};
        if (r + i < R) bits = *reinterpret_cast<const uint4 *>(m_e + w * R + r + i);
        T element[count];
        memcpy(element, &bits, 16);
#pragma unroll
        for (int c = 0; c < count; c++) value[i + c] = to_float(element[c]);
      }
      return;
    }
    const T *first = is_wide_first ? m_e + w * R + r : m_e + static_cast<int64_t>(r) * W + w;
    const int64_t step = is_wide_first ? 1 : W;
#pragma unroll
    for (int i = 0; i < kChunk; i++) value[i] = r + i < R ? to_float(first[i * step]) : 0.f;
  }
};

// The expert of a place: the last one that begins at or before it.
__device__ inline int expert_at(const int64_t *offset, int E, int64_t place) {
  int low = 0, high = E - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (offset[middle] <= place)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

constexpr int kWarpSlots = 4;

// grid: (places / (8 warps * 4 slots), chunks of ranks)
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
shrink(const T *__restrict__ rows, Factor<T> factor, const int64_t *__restrict__ order,
       const int64_t *__restrict__ offset, float *__restrict__ z, int64_t S, int K, int E) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int64_t kept = offset[E], begin = (static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp) * kWarpSlots;
  const int64_t end = begin + kWarpSlots < kept ? begin + kWarpSlots : kept;
  const int r = blockIdx.y * kChunk;
  // Four places are mostly of one expert; where they are not, each run of one expert is taken by itself.
  for (int64_t from = begin; from < end;) {
    const int e = expert_at(offset, E, from);
    const int64_t to = offset[e + 1] < end ? offset[e + 1] : end;
    const T *row[kWarpSlots];
#pragma unroll
    for (int i = 0; i < kWarpSlots; i++)
      row[i] = rows + order[from + i < to ? from + i : from] / K * factor.W;
    float total[kWarpSlots][kChunk] = {};
    for (int64_t w = lane; w < factor.W; w += 32) {
      float m[kChunk];
      factor.ranks(e, w, r, m);
#pragma unroll
      for (int i = 0; i < kWarpSlots; i++) {
        const float x = to_float(row[i][w]);
#pragma unroll
        for (int c = 0; c < kChunk; c++) total[i][c] += x * m[c];
      }
    }
#pragma unroll
    for (int i = 0; i < kWarpSlots; i++)
#pragma unroll
      for (int c = 0; c < kChunk; c++) {
        const float sum = warp_sum(total[i][c]);
        if (lane == c && from + i < to && r + c < factor.R) z[(from + i) * factor.R + r + c] = sum;
      }
    from = to;
  }
}

constexpr int kTokens = 64;
constexpr int kColumns = 128;
constexpr int kTurn = 64;  // slots whose z is brought to shared memory at a time

// grid: (columns / 128, tokens / 64), 128 threads: nobody else touches a thread's column of sums
template <class T>
__global__ void __launch_bounds__(kColumns)
expand(const T *base, const float *__restrict__ z, Factor<T> factor, const int64_t *__restrict__ order,
       const int64_t *__restrict__ offset, T *out, int64_t N, int K, int E) {
  __shared__ float total[kTokens][kColumns];
  __shared__ __align__(16) float z_turn[kTurn][kChunk];
  __shared__ int token_of[kTurn];
  DYNAMIC_SHARED(int, begin_of);  // [E] first place in these tokens, then [E] the end
  int *end_of = begin_of + E;
  const int64_t n = static_cast<int64_t>(blockIdx.y) * kTokens;
  const int tokens = static_cast<int>(N - n < kTokens ? N - n : kTokens), column = threadIdx.x;
  const int64_t w = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  const bool is_inside = w < factor.W;

  for (int t = 0; t < tokens; t++)
    total[t][column] = base && is_inside ? to_float(base[(n + t) * factor.W + w]) : 0.f;
  for (int e = threadIdx.x; e < E; e += kColumns) {
    begin_of[e] = static_cast<int>(first_place(order, offset, e, n * K));
    end_of[e] = static_cast<int>(first_place(order, offset, e, (n + tokens) * K));
  }
  __syncthreads();
  for (int e = 0; e < E; e++)
    for (int from = begin_of[e]; from < end_of[e]; from += kTurn) {
      const int slots = end_of[e] - from < kTurn ? end_of[e] - from : kTurn;
      for (int r = 0; r < factor.R; r += kChunk) {
        for (int i = threadIdx.x; i < slots * kChunk; i += kColumns) {
          const int s = i / kChunk, c = i % kChunk;
          z_turn[s][c] = r + c < factor.R ? z[static_cast<int64_t>(from + s) * factor.R + r + c] : 0.f;
          if (c == 0) token_of[s] = static_cast<int>(order[from + s] / K - n);
        }
        __syncthreads();
        float m[kChunk] = {};
        if (is_inside) factor.ranks(e, w, r, m);
        for (int s = 0; s < slots; s++) {
          float sum = total[token_of[s]][column];
#pragma unroll
          for (int c = 0; c < kChunk; c++) sum += z_turn[s][c] * m[c];
          total[token_of[s]][column] = sum;
        }
        __syncthreads();
      }
    }
  if (is_inside)
    for (int t = 0; t < tokens; t++) out[(n + t) * factor.W + w] = from_float<T>(total[t][column]);
}

// grid: (columns / 256, chunks of ranks, experts)
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
outer(const float *__restrict__ z, const T *__restrict__ rows, const int64_t *__restrict__ order,
      const int64_t *__restrict__ offset, T *__restrict__ dm, int K, int R, int64_t W, bool is_wide_first) {
  __shared__ __align__(16) float z_turn[kTurn][kChunk];
  __shared__ int64_t token_of[kTurn];
  const int64_t w = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int r = blockIdx.y * kChunk, e = blockIdx.z;
  float total[kChunk] = {};
  for (int64_t from = offset[e]; from < offset[e + 1]; from += kTurn) {
    const int slots = static_cast<int>(offset[e + 1] - from < kTurn ? offset[e + 1] - from : kTurn);
    for (int i = threadIdx.x; i < slots * kChunk; i += kThreads) {
      const int s = i / kChunk, c = i % kChunk;
      z_turn[s][c] = r + c < R ? z[(from + s) * R + r + c] : 0.f;
      if (c == 0) token_of[s] = order[from + s] / K;
    }
    __syncthreads();
#pragma unroll 2
    for (int s = 0; s < slots; s++) {
      const float x = w < W ? to_float(rows[token_of[s] * W + w]) : 0.f;
#pragma unroll
      for (int c = 0; c < kChunk; c++) total[c] += z_turn[s][c] * x;
    }
    __syncthreads();
  }
  if (w >= W) return;
  T *to = dm + static_cast<int64_t>(e) * R * W + (is_wide_first ? w * R + r : r * W + w);
  const int64_t step = is_wide_first ? 1 : W;
#pragma unroll
  for (int c = 0; c < kChunk; c++) {
    if (r + c == R) return;
    to[c * step] = from_float<T>(total[c]);
  }
}

bool is_sound(int64_t N, int64_t K, int64_t E, int64_t R, int64_t W) {
  return N >= 0 && K >= 1 && K <= E && E >= 1 && E <= kMostExperts && R >= 1 && R <= 8192 && W >= 1 &&
         N * K < (int64_t{1} << 31);
}

unsigned parts(int64_t whole, int64_t part) { return static_cast<unsigned>((whole + part - 1) / part); }

}  // namespace

EXPORT int mmmoe_lora_shrink(const void *rows, const void *m, const int64_t *order, const int64_t *offset, float *z,
                             int64_t N, int64_t K, int64_t E, int64_t R, int64_t W, int64_t is_wide_first, int64_t type,
                             void *raw_stream) {
  if (!is_sound(N, K, E, R, W)) return kBadArgument;
  if (N == 0) return 0;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const dim3 grid(parts(N * K, kThreads / 32 * kWarpSlots), parts(R, kChunk));
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    const Factor<T> factor(m, R, W, is_wide_first != 0);
    LAUNCH(shrink<T>, grid, kThreads, 0, stream, static_cast<const T *>(rows), factor, order, offset, z, N * K,
           static_cast<int>(K), static_cast<int>(E));
    return static_cast<int>(last_error());
  });
}

// No base (a null pointer) stands for zeros; `out` may be the base.
EXPORT int mmmoe_lora_expand(const void *base, const float *z, const void *m, const int64_t *order,
                             const int64_t *offset, void *out, int64_t N, int64_t K, int64_t E, int64_t R, int64_t W,
                             int64_t is_wide_first, int64_t type, void *raw_stream) {
  if (!is_sound(N, K, E, R, W) || parts(N, kTokens) > 65535) return kBadArgument;
  if (N == 0) return 0;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const dim3 grid(parts(W, kColumns), parts(N, kTokens));
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    const Factor<T> factor(m, R, W, is_wide_first != 0);
    LAUNCH(expand<T>, grid, kColumns, 2 * sizeof(int) * E, stream, static_cast<const T *>(base), z, factor, order,
           offset, static_cast<T *>(out), N, static_cast<int>(K), static_cast<int>(E));
    return static_cast<int>(last_error());
  });
}

EXPORT int mmmoe_lora_outer(const float *z, const void *rows, const int64_t *order, const int64_t *offset, void *dm,
                            int64_t N, int64_t K, int64_t E, int64_t R, int64_t W, int64_t is_wide_first, int64_t type,
                            void *raw_stream) {
  if (!is_sound(N, K, E, R, W)) return kBadArgument;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const dim3 grid(parts(W, kThreads), parts(R, kChunk), static_cast<unsigned>(E));
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    LAUNCH(outer<T>, grid, kThreads, 0, stream, z, static_cast<const T *>(rows), order, offset, static_cast<T *>(dm),
           static_cast<int>(K), static_cast<int>(R), W, is_wide_first != 0);
    return static_cast<int>(last_error());
  });
}
