// Rows to expert order on a CPU: a token's row is read once and written to the places of its K slots.
#include "cpu.h"

EXPORT int mmmoe_dispatch(const void *x, const int64_t *order, const int64_t *inverse, void *out, int64_t N, int64_t K,
                          int64_t bytes, void *) {
  const char *x_N = static_cast<const char *>(x);
  char *out_S = static_cast<char *>(out);
#pragma omp parallel for if (N * K * bytes > 65536)
  for (int64_t n = 0; n < N; n++)
    for (int64_t s = n * K; s < (n + 1) * K; s++) {
      if (inverse[s] >= 0) memcpy(out_S + inverse[s] * bytes, x_N + n * bytes, bytes);
      if (order[s] < 0) memset(out_S + s * bytes, 0, bytes);  // a place that no slot takes
    }
  return 0;
}
