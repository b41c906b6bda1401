// What the C++ files share: element types, vectors as wide as the processor's registers, and how a type code is chosen.
//
// Threads come from OpenMP. The library finds the copy of libgomp that torch has loaded, so `torch.set_num_threads`
// holds here too and there is one pool of threads. Every result is the same for any number of threads.
#pragma once

#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr int kBadArgument = -1;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline Vector<T> load(const T *from) { return *reinterpret_cast<const Vector<T> *>(from); }
template <class T>
inline void store(T *to, Vector<T> v) { *reinterpret_cast<Vector<T> *>(to) = v; }
template <class T>
inline T sum(Vector<T> v) {
  T total = 0;
  for (int i = 0; i < VectorOf<T>::lanes; i++) total += v[i];
  return total;
}

struct bfloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  static bfloat16 from(float value) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};  // a NaN stays one
    return {static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1)) >> 16)};
  }
};
using float16 = _Float16;

// Asks for large pages under fresh memory that is about to be written: 64 MiB then cost 11 ms for their first touch
// instead of 27 ms (Zen 4, virtual machine). A hint: nothing changes where the system knows none.
inline void want_huge_pages([[maybe_unused]] void *memory, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, huge = 2 << 20;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (to >= from + 4 * huge) madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);
#endif
}

// The type that sums are kept in, and the way back.
template <class T>
struct Exact { using type = float; };
template <>
struct Exact<double> { using type = double; };

template <class T>
inline T rounded(typename Exact<T>::type value) { return static_cast<T>(value); }
template <>
inline bfloat16 rounded<bfloat16>(float value) { return bfloat16::from(value); }

// Calls `run` with a value of the type that mmmoe/kernels/backend.py gave this code.
template <class Run>
int by_type(int64_t code, Run run) {
  switch (code) {
    case 0: return run(float{});
    case 1: return run(bfloat16{});
    case 2: return run(float16{});
    case 3: return run(double{});
    default: return kBadArgument;
  }
}

// exp(x) for x <= 0, to two units in the last place, in a form that compilers turn into vector code.
inline float exp_below(float x) {
  const bool is_nothing = x < -87.f;
  x = is_nothing ? 0.f : x;
  const float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounded, by what a float of that size can hold
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits;
  memcpy(&bits, &p, 4);
  bits += static_cast<int32_t>(n) << 23;
  memcpy(&p, &bits, 4);
  return is_nothing ? 0.f : p;
}
inline double exp_below(double x) { return std::exp(x); }

// Stable order of slots by expert; defined in order.cpp. Slots whose expert is not one of 0 to experts - 1, and those of
// an expert beyond its capacity, get place -1, and -1 ends the order.
void order_slots(const int64_t *expert_S, int64_t slots, int64_t experts, int64_t capacity, int64_t *count_E,
                 int64_t *offset_E1, int64_t *order_S, int64_t *inverse_S);
