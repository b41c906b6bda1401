// Rows to expert order: a token's row is read once and written to the places of its K slots.
//
//   x (N, width)   out (N * K, width)   a row of threads owns a token
//
// A slot left out (place -1) is not written; a place that no slot takes (order -1) is filled with zeros.
#include "rows.h"

namespace {

template <class P>
__global__ void __launch_bounds__(kRowThreads)
dispatch(const P *__restrict__ x, const int64_t *__restrict__ order, const int64_t *__restrict__ inverse,
         P *__restrict__ out, int64_t N, int K, int64_t packs) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= N) return;
  along(packs, [&](int64_t base) {
    Held<P> row(base, packs);
    row.load(x + n * packs);
#pragma unroll 1  // unrolled, the bounds of the packs would be spilled
    for (int k = 0; k < K; k++) {
      const int64_t place = known_place(inverse[n * K + k], N * K);
      if (place >= 0) row.store(out + place * packs);
    }
  });
  clear_untaken(order, out, n, K, packs);
}

template <class P>
void launch(const void *x, const int64_t *order, const int64_t *inverse, void *out, int64_t N, int K, int64_t packs,
            cudaStream_t stream) {
  const RowShape shape = row_shape(N, packs);
  LAUNCH(dispatch<P>, shape.grid, shape.block, 0, stream, static_cast<const P *>(x), order, inverse,
         static_cast<P *>(out), N, K, packs);
}

}  // namespace

// Rows are moved as bytes, whatever their type; `bytes` is a row's length, even.
EXPORT int mmmoe_dispatch(const void *x, const int64_t *order, const int64_t *inverse, void *out, int64_t N,
                          int64_t num_chosen, int64_t bytes, void *raw_stream) {
  if (N == 0 || bytes == 0) return 0;
  if (!is_sound(N, num_chosen, bytes) || bytes % 2) return kBadArgument;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const int K = static_cast<int>(num_chosen);
  if (fits_16_bytes(bytes, {x, out}))
    launch<Wide<uint16_t>>(x, order, inverse, out, N, K, bytes / 16, stream);
  else
    launch<Narrow<uint16_t>>(x, order, inverse, out, N, K, bytes / 2, stream);
  return last_error();
}
