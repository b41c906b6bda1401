// The way back: a token's K rows, weighted by its gates, summed in float32 and rounded once; and the gradients.
//
//   rows (places, width)   gate (N, K)   out (N, width)   a row of threads owns a token
//
// A slot left out (place -1) adds nothing; one whose place does not exist makes the token NaN, so it cannot pass unseen.
#include "rows.h"

namespace {

template <class T, class P>
__global__ void __launch_bounds__(kRowThreads)
combine(const P *__restrict__ rows, const float *__restrict__ gate, const int64_t *__restrict__ inverse,
        P *__restrict__ out, int64_t N, int K, int64_t places, int64_t packs) {
  constexpr int kCount = sizeof(P) / sizeof(T);
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= N) return;
  along(packs, [&](int64_t base) {
    float total[kPacks][kCount] = {};
#pragma unroll 2
    for (int k = 0; k < K; k++) {
      const int64_t place = known_place(inverse[n * K + k], places);
      if (place == kLeftOut) continue;
      const float weight = place == kWrong ? NAN : gate ? gate[n * K + k] : 1.f;
      Held<P> row(base, packs);
      row.load(rows + (place == kWrong ? 0 : place * packs));
#pragma unroll
      for (int j = 0; j < kPacks; j++)
#pragma unroll
        for (int c = 0; c < kCount; c++) total[j][c] += weight * to_float(row.pack[j].element[c]);
    }
    Held<P> result(base, packs);
#pragma unroll
    for (int j = 0; j < kPacks; j++)
#pragma unroll
      for (int c = 0; c < kCount; c++) result.pack[j].element[c] = from_float<T>(total[j][c]);
    result.store(out + n * packs);
  });
}

// drows[place] = gate * dout and dgate = rows[place] . dout: dout and each row are read once.
template <class T, class P>
__global__ void __launch_bounds__(kRowThreads, 2)
combine_backward(const P *__restrict__ dout, const P *__restrict__ rows, const float *__restrict__ gate,
                 const int64_t *__restrict__ order, const int64_t *__restrict__ inverse, P *__restrict__ drows,
                 float *__restrict__ dgate, int64_t N, int K, int64_t packs) {
  constexpr int kCount = sizeof(P) / sizeof(T);
  __shared__ float part[kRowThreads / 32][kMostChosen];  // sums of each warp
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int warp = (threadIdx.y * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (lane == 0)  // who alone adds to it
    for (int k = 0; k < K; k++) part[warp][k] = 0.f;
  if (n < N) {
    along(packs, [&](int64_t base) {
      Held<P> grad(base, packs);
      grad.load(dout + n * packs);
#pragma unroll 1  // unrolled, the bounds of the packs would be spilled
      for (int k = 0; k < K; k++) {
        const int64_t place = known_place(inverse[n * K + k], N * K);
        if (place < 0) {
          if (place == kWrong && lane == 0) part[warp][k] = NAN;
          continue;
        }
        const float weight = gate[n * K + k];
        Held<P> row(base, packs);
        row.load(rows + place * packs);
        float product = 0.f;
#pragma unroll
        for (int j = 0; j < kPacks; j++)
#pragma unroll
          for (int c = 0; c < kCount; c++) {
            const float g = to_float(grad.pack[j].element[c]);
            product += g * to_float(row.pack[j].element[c]);
            row.pack[j].element[c] = from_float<T>(weight * g);
          }
        row.store(drows + place * packs);
        product = warp_sum(product);
        if (lane == 0) part[warp][k] += product;
      }
    });
    clear_untaken(order, drows, n, K, packs);
  }
  __syncthreads();
  if (n < N && threadIdx.x < K) {
    float sum = 0.f;
    const int first = threadIdx.y * blockDim.x / 32;
    for (int w = 0; w < blockDim.x / 32; w++) sum += part[first + w][threadIdx.x];
    dgate[n * K + threadIdx.x] = sum;
  }
}

template <class T, class P>
void launch(const void *rows, const float *gate, const int64_t *inverse, void *out, int64_t N, int K, int64_t places,
            int64_t packs, cudaStream_t stream) {
  const RowShape shape = row_shape(N, packs);
  LAUNCH((combine<T, P>), shape.grid, shape.block, 0, stream, static_cast<const P *>(rows), gate, inverse,
         static_cast<P *>(out), N, K, places, packs);
}

template <class T, class P>
void launch_backward(const void *dout, const void *rows, const float *gate, const int64_t *order,
                     const int64_t *inverse, void *drows, float *dgate, int64_t N, int K, int64_t packs,
                     cudaStream_t stream) {
  const RowShape shape = row_shape(N, packs);
  LAUNCH((combine_backward<T, P>), shape.grid, shape.block, 0, stream, static_cast<const P *>(dout),
         static_cast<const P *>(rows), gate, order, inverse, static_cast<P *>(drows), dgate, N, K, packs);
}

}  // namespace

// No gate (a null pointer) stands for ones.
EXPORT int mmmoe_combine(const void *rows, const float *gate, const int64_t *inverse, void *out, int64_t N,
                         int64_t num_chosen, int64_t places, int64_t D, int64_t type, void *raw_stream) {
  if (N == 0 || D == 0) return 0;
  if (!is_sound(N, num_chosen, D)) return kBadArgument;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const int K = static_cast<int>(num_chosen);
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    if (fits_16_bytes(D * sizeof(T), {rows, out}))
      launch<T, Wide<T>>(rows, gate, inverse, out, N, K, places, D * sizeof(T) / 16, stream);
    else
      launch<T, Narrow<T>>(rows, gate, inverse, out, N, K, places, D, stream);
    return static_cast<int>(last_error());
  });
}

EXPORT int mmmoe_combine_backward(const void *dout, const void *rows, const float *gate, const int64_t *order,
                                  const int64_t *inverse, void *drows, float *dgate, int64_t N, int64_t num_chosen,
                                  int64_t D, int64_t type, void *raw_stream) {
  if (N == 0) return 0;
  if (!is_sound(N, num_chosen, D)) return kBadArgument;
  const auto stream = static_cast<cudaStream_t>(raw_stream);
  const int K = static_cast<int>(num_chosen);
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    if (fits_16_bytes(D * sizeof(T), {dout, rows, drows}))
      launch_backward<T, Wide<T>>(dout, rows, gate, order, inverse, drows, dgate, N, K, D * sizeof(T) / 16, stream);
    else
      launch_backward<T, Narrow<T>>(dout, rows, gate, order, inverse, drows, dgate, N, K, D, stream);
    return static_cast<int>(last_error());
  });
}
