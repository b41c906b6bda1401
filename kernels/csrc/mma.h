// Products of 16 by 16 tiles by one warp: on matrix units for half types, else and on a CPU by exchanging registers.
//
// There is one layout. Lane 4 g + t holds the rows r = 4 (g / 2) + g % 2 and r + 2, and of both the columns 4 t to
// 4 t + 3, so memory is read four neighbours at a time. It serves as both operands of mma.m16n8k16 and as its result,
// though there a lane holds rows g and g + 8 and columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: which rows a product calls
// g and g + 8, and in which order it adds along k, is free as long as both sides agree. A transposed tile has the same
// layout again.
#pragma once

#include <type_traits>

#include "common.h"

namespace {

constexpr int kSide = 16;

template <class T>
struct PairOf;
template <>
struct PairOf<float> { using type = float2; };
template <>
struct PairOf<__nv_bfloat16> { using type = __nv_bfloat162; };
template <>
struct PairOf<__half> { using type = __half2; };
template <class T>
using Pair = typename PairOf<T>::type;

template <class T>
__device__ inline Pair<T> to_pair(float x, float y) {
  if constexpr (std::is_same_v<T, float>)
    return make_float2(x, y);
  else if constexpr (std::is_same_v<T, __half>)
    return __floats2half2_rn(x, y);
  else
    return __floats2bfloat162_rn(x, y);
}

// Where a lane's elements lie in a tile: its rows for i = 0 and 1, and the first of its four columns.
__device__ inline int tile_row(int i) {
  const int g = (threadIdx.x & 31) >> 2;
  return (g >> 1) * 4 + (g & 1) + 2 * i;
}
__device__ inline int tile_column() { return (threadIdx.x & 3) * 4; }

template <class T>
struct Tile {
  Pair<T> pair[2][2];  // [row][half of its four columns]

  __device__ Tile() {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) pair[i][j] = to_pair<T>(0.f, 0.f);
  }
  __device__ T at(int i, int c) const { return c % 2 ? pair[i][c / 2].y : pair[i][c / 2].x; }
  __device__ T &at(int i, int c) { return c % 2 ? pair[i][c / 2].y : pair[i][c / 2].x; }
  __device__ float4 row(int i) const { return {pair[i][0].x, pair[i][0].y, pair[i][1].x, pair[i][1].y}; }
};

// The same tile in another type.
template <class T, class From>
__device__ inline Tile<T> as_type(const Tile<From> &from) {
  Tile<T> to;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      if constexpr (std::is_same_v<T, From>)
        to.pair[i][j] = from.pair[i][j];
      else
        to.pair[i][j] = to_pair<T>(to_float(from.pair[i][j].x), to_float(from.pair[i][j].y));
    }
  return to;
}

template <class T>
__device__ inline void add_tile(Tile<float> &total, const Tile<T> &tile) {
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int c = 0; c < 4; c++) total.at(i, c) += to_float(tile.at(i, c));
}

// Where memory is read four elements at a time, what would lie behind the end of a row is zero if it enters a sum; if
// no one looks at the outcome, the last four are read instead, which takes fewer instructions.
enum class Beyond { anything, zeros };

// A tile of the columns from `first` on, of the rows row_of(row, i), i = 0 and 1. kQuads: four neighbours lie at a
// multiple of their size, and end_of(i) is a multiple of four; without it, all that is beyond is zero.
template <class T, bool kQuads, Beyond kBeyond, class RowOf, class EndOf>
__device__ inline Tile<T> load_tile(int first, RowOf row_of, EndOf end_of) {
  using From = std::remove_const_t<std::remove_pointer_t<decltype(row_of(0, 0))>>;
  Tile<From> tile;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const From *row = row_of(tile_row(i), i);
    const int end = end_of(i);
    int column = first + tile_column();
    if constexpr (kQuads) {
      using Bits = std::conditional_t<sizeof(From) == 4, uint4, uint2>;
      if constexpr (kBeyond == Beyond::anything) column = column < end ? column : end - 4;
      if (kBeyond == Beyond::anything || column < end) {
        const Bits bits = *reinterpret_cast<const Bits *>(row + column);
        memcpy(static_cast<void *>(tile.pair[i]), &bits, sizeof(Bits));
      }
    } else {
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (column + c < end) tile.at(i, c) = row[column + c];
    }
  }
  return as_type<T>(tile);
}

// Four neighbours, rounded to the type of the row, at its elements from `column` on; nothing beyond the end.
template <bool kQuads, class T>
__device__ inline void store_four(T *row, int end, int column, float4 value) {
  const Pair<T> pair[2] = {to_pair<T>(value.x, value.y), to_pair<T>(value.z, value.w)};
  if constexpr (kQuads) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    Bits bits;
    memcpy(&bits, pair, sizeof(Bits));
    if (column < end) *reinterpret_cast<Bits *>(row + column) = bits;
  } else {
    if (column < end) row[column] = pair[0].x;
    if (column + 1 < end) row[column + 1] = pair[0].y;
    if (column + 2 < end) row[column + 2] = pair[1].x;
    if (column + 3 < end) row[column + 3] = pair[1].y;
  }
}

#ifdef __CUDACC__
template <class T>
constexpr bool kHasUnits = !std::is_same_v<T, float>;

template <class P>
__device__ inline uint32_t bits_of(P pair) {
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// total (rows g and g + 8 by 8 columns) += a b^T
template <class T>
__device__ inline void multiply_by_units(float2 &low, float2 &high, const Tile<T> &a, const Pair<T> (&b)[2]) {
#define MMMOE_MMA(type)                                                                                         \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                           \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                     \
               : "+f"(low.x), "+f"(low.y), "+f"(high.x), "+f"(high.y)                                           \
               : "r"(bits_of(a.pair[0][0])), "r"(bits_of(a.pair[1][0])), "r"(bits_of(a.pair[0][1])),            \
                 "r"(bits_of(a.pair[1][1])), "r"(bits_of(b[0])), "r"(bits_of(b[1])))
  if constexpr (std::is_same_v<T, __half>)
    MMMOE_MMA("f16");
  else
    MMMOE_MMA("bf16");
#undef MMMOE_MMA
}

template <class P>
__device__ inline P turned_by_units(P pair) {
  uint32_t bits = bits_of(pair);
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(bits));
  memcpy(&pair, &bits, 4);
  return pair;
}

__device__ inline float2 from_lane(float2 pair, int lane) {
  return {__shfl_sync(kAll, pair.x, lane), __shfl_sync(kAll, pair.y, lane)};
}
#else
template <class T>
constexpr bool kHasUnits = false;
template <class P>
inline P from_lane(P pair, int lane) { return __shfl_sync(kAll, pair, lane); }
#endif

// total += a b^T: b holds a row for each column of the result.
template <class T>
__device__ inline void multiply(Tile<float> &total, const Tile<T> &a, const Tile<T> &b) {
#ifdef __CUDACC__
  if constexpr (kHasUnits<T>) {
#pragma unroll
    for (int j = 0; j < 2; j++) multiply_by_units(total.pair[0][j], total.pair[1][j], a, b.pair[j]);
    return;
  }
#endif
  if constexpr (!kHasUnits<T>) {
    const int lane = threadIdx.x & 31, t = lane & 3;
#pragma unroll 1  // as code for each of the four it would be long
    for (int q = 0; q < 4; q++)
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const Pair<T> upper = from_lane(a.pair[0][k], (lane & ~3) + q);
        const Pair<T> lower = from_lane(a.pair[1][k], (lane & ~3) + q);
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const Pair<T> x = from_lane(b.pair[j][k], 8 * t + q), y = from_lane(b.pair[j][k], 8 * t + 4 + q);
          total.pair[0][j].x += to_float(upper.x) * to_float(x.x) + to_float(upper.y) * to_float(x.y);
          total.pair[0][j].y += to_float(upper.x) * to_float(y.x) + to_float(upper.y) * to_float(y.y);
          total.pair[1][j].x += to_float(lower.x) * to_float(x.x) + to_float(lower.y) * to_float(x.y);
          total.pair[1][j].y += to_float(lower.x) * to_float(y.x) + to_float(lower.y) * to_float(y.y);
        }
      }
  }
}

template <class T>
__device__ inline Tile<T> transposed(const Tile<T> &tile) {
  Tile<T> result;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {  // 8 by 8 elements
#ifdef __CUDACC__
      if constexpr (kHasUnits<T>) result.pair[j][i] = turned_by_units(tile.pair[i][j]);
#endif
      if constexpr (!kHasUnits<T>) {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
        const Pair<T> x = from_lane(tile.pair[i][j], 8 * t + g / 2), y = from_lane(tile.pair[i][j], 8 * t + 4 + g / 2);
        result.pair[j][i].x = g % 2 ? x.y : x.x;
        result.pair[j][i].y = g % 2 ? y.y : y.x;
      }
    }
  return result;
}

}  // namespace
