// The way back on a CPU: a token's rows weighted by its gates and summed, and the gradients of rows and gates.
#include "cpu.h"

namespace {

constexpr int kMostChosen = 8;

// out[d] = sum over k of gate[k] * row[k][d]; the order of adding is that of k.
template <class T, int K, class A>
void weighted_sum(const T *const *rows_K, const A *gate_K, T *out_D, int64_t D) {
  for (int64_t d = 0; d < D; d++) {
    A total = gate_K[0] * static_cast<A>(rows_K[0][d]);
    for (int k = 1; k < K; k++) total += gate_K[k] * static_cast<A>(rows_K[k][d]);
    out_D[d] = rounded<T>(total);
  }
}

template <class T, class A>
void weighted_sum(int64_t kept, const T *const *rows_K, const A *gate_K, T *out_D, int64_t D) {
  switch (kept) {
    case 0: std::fill(out_D, out_D + D, rounded<T>(0)); return;
    case 1: return weighted_sum<T, 1>(rows_K, gate_K, out_D, D);
    case 2: return weighted_sum<T, 2>(rows_K, gate_K, out_D, D);
    case 3: return weighted_sum<T, 3>(rows_K, gate_K, out_D, D);
    case 4: return weighted_sum<T, 4>(rows_K, gate_K, out_D, D);
    case 5: return weighted_sum<T, 5>(rows_K, gate_K, out_D, D);
    case 6: return weighted_sum<T, 6>(rows_K, gate_K, out_D, D);
    case 7: return weighted_sum<T, 7>(rows_K, gate_K, out_D, D);
    default: return weighted_sum<T, 8>(rows_K, gate_K, out_D, D);
  }
}

// drow[d] = gate * dout[d]; returns the sum over d of row[d] * dout[d], added in a fixed order.
template <class T, class A>
A backward_row(const T *row_D, const T *dout_D, A gate, T *drow_D, int64_t D) {
  constexpr int kParts = 32;
  A part[kParts] = {};
  int64_t d = 0;
  for (; d + kParts <= D; d += kParts)
    for (int i = 0; i < kParts; i++) {
      const A dout = static_cast<A>(dout_D[d + i]);
      part[i] += static_cast<A>(row_D[d + i]) * dout;
      drow_D[d + i] = rounded<T>(gate * dout);
    }
  for (; d < D; d++) {
    const A dout = static_cast<A>(dout_D[d]);
    part[0] += static_cast<A>(row_D[d]) * dout;
    drow_D[d] = rounded<T>(gate * dout);
  }
  A total = 0;
  for (int i = 0; i < kParts; i++) total += part[i];
  return total;
}

}  // namespace

// No gate (a null pointer) stands for ones. The number of rows is for the bounds that a GPU checks.
EXPORT int mmmoe_combine(const void *rows, const void *gate, const int64_t *inverse, void *out, int64_t N, int64_t K,
                         int64_t, int64_t D, int64_t type, void *) {
  if (K < 1 || K > kMostChosen) return kBadArgument;
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    using A = typename Exact<T>::type;
    const T *rows_SD = static_cast<const T *>(rows);
    const A *gate_NK = static_cast<const A *>(gate);
    T *out_ND = static_cast<T *>(out);
#pragma omp parallel for if (N * K * D > 16384)
    for (int64_t n = 0; n < N; n++) {
      const T *kept_K[kMostChosen] = {};
      A weight_K[kMostChosen] = {};
      int64_t kept = 0;
      for (int64_t s = n * K; s < (n + 1) * K; s++) {
        if (inverse[s] < 0) continue;
        kept_K[kept] = rows_SD + inverse[s] * D;
        weight_K[kept++] = gate_NK ? gate_NK[s] : A{1};
      }
      weighted_sum(kept, kept_K, weight_K, out_ND + n * D, D);
    }
    return 0;
  });
}

EXPORT int mmmoe_combine_backward(const void *dout, const void *rows, const void *gate, const int64_t *order,
                                  const int64_t *inverse, void *drows, void *dgate, int64_t N, int64_t K, int64_t D,
                                  int64_t type, void *) {
  if (K < 1 || K > kMostChosen) return kBadArgument;
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    using A = typename Exact<T>::type;
    const T *dout_ND = static_cast<const T *>(dout), *rows_SD = static_cast<const T *>(rows);
    const A *gate_NK = static_cast<const A *>(gate);
    T *drows_SD = static_cast<T *>(drows);
    A *dgate_NK = static_cast<A *>(dgate);
#pragma omp parallel for if (N * K * D > 16384)
    for (int64_t n = 0; n < N; n++)
      for (int64_t s = n * K; s < (n + 1) * K; s++) {
        const int64_t place = inverse[s];
        dgate_NK[s] = place < 0 ? A{0}
                                : backward_row(rows_SD + place * D, dout_ND + n * D, gate_NK[s], drows_SD + place * D, D);
        if (order[s] < 0) std::fill(drows_SD + s * D, drows_SD + (s + 1) * D, rounded<T>(0));
      }
    return 0;
  });
}
