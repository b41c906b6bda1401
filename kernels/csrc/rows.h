// What the kernels that move rows share: accesses of 16 bytes, the shape of a launch, and places that do not exist.
//
// A block is `lanes` threads along a row by several rows; a thread holds kPacks packs of a row at a time, so that as many
// loads are under way and a row that is needed K times is read once. A pack is 16 bytes where addresses and width allow,
// else one element. All offsets have 64 bits: rows * width passes 2^31 elements in earnest.
#pragma once

#include "common.h"

namespace {

constexpr int kRowThreads = 256;
constexpr int kMostChosen = 8;
constexpr int kPacks = 4;

// As many elements as one access moves.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};
template <class T>
using Wide = Pack<T, 16 / sizeof(T)>;
template <class T>
using Narrow = Pack<T, 1>;

// The packs of a row that a thread holds; beyond the row's end they are zero and are not written.
template <class P>
struct Held {
  P pack[kPacks];
  int64_t first, packs;

  __device__ Held(int64_t base, int64_t packs) : first(base + threadIdx.x), packs(packs) {}
  __device__ bool is_inside(int j) const { return first + j * blockDim.x < packs; }

  __device__ void load(const P *row) {
#pragma unroll
    for (int j = 0; j < kPacks; j++) {
      pack[j] = P{};
      if (!is_inside(j)) continue;
      if constexpr (sizeof(P) == 16) {  // said plainly, so that one instruction loads it
        const uint4 bits = *reinterpret_cast<const uint4 *>(row + first + j * blockDim.x);
        memcpy(&pack[j], &bits, 16);
      } else {
        pack[j] = row[first + j * blockDim.x];
      }
    }
  }

  __device__ void store(P *row) const {
#pragma unroll
    for (int j = 0; j < kPacks; j++) {
      if (!is_inside(j)) continue;
      if constexpr (sizeof(P) == 16) {
        uint4 bits;
        memcpy(&bits, &pack[j], 16);
        *reinterpret_cast<uint4 *>(row + first + j * blockDim.x) = bits;
      } else {
        row[first + j * blockDim.x] = pack[j];
      }
    }
  }
};

// Calls `visit(base)` for each stretch of a row that the threads along it can hold.
template <class Visit>
__device__ inline void along(int64_t packs, Visit visit) {
  for (int64_t base = 0; base < packs; base += static_cast<int64_t>(blockDim.x) * kPacks) visit(base);
}

// Zeros into the rows at places that no slot takes, among the places n * K to n * K + K - 1.
template <class P>
__device__ inline void clear_untaken(const int64_t *order, P *rows, int64_t n, int K, int64_t packs) {
  for (int64_t s = n * K; s < (n + 1) * K; s++)
    if (order[s] < 0)
      for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) rows[s * packs + i] = P{};
}

// A place that holds no row: left out on purpose, or out of range.
constexpr int64_t kLeftOut = -1, kWrong = -2;

__device__ inline int64_t known_place(int64_t place, int64_t places) {
  return place >= 0 && place < places ? place : place == -1 ? kLeftOut : kWrong;
}

struct RowShape {
  dim3 block;
  unsigned grid;
};

inline RowShape row_shape(int64_t rows, int64_t packs) {
  unsigned lanes = 32;
  while (lanes < kRowThreads && lanes * kPacks < packs) lanes *= 2;
  const unsigned together = kRowThreads / lanes;
  return {dim3(lanes, together), static_cast<unsigned>((rows + together - 1) / together)};
}

inline bool fits_16_bytes(int64_t row_bytes, std::initializer_list<const void *> addresses) {
  for (const void *address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16) return false;
  return row_bytes % 16 == 0;
}

inline bool is_sound(int64_t N, int64_t K, int64_t width) {
  return N >= 0 && K >= 1 && K <= kMostChosen && width >= 0 && N < (int64_t{1} << 31);
}

}  // namespace
