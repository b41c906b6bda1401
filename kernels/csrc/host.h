// Runs the kernels of this folder on a CPU, with any C++ compiler: a machine without a GPU can test the very same source.
//
// Every thread of a block is a fibre with its own stack. A fibre runs until it waits at a barrier or a warp operation;
// then another one is resumed, so shared memory, barriers, shuffles and atomics behave as on the device, but for
// one thing: here shuffles and votes order memory too, on the device they need not. Blocks run one
// after another. Which fibre comes next is drawn at random, or by random fixed priorities of the warps: the latter lets
// one warp run far ahead, which is what shows that a barrier is missing. Not covered: matrix units, asynchronous copies.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#if !defined(__x86_64__)
#error "host.h switches stacks in x86-64 assembly; compile with nvcc elsewhere"
#endif

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)

// Saves the callee's registers on the running stack and goes on with another one.
extern "C" void mmmoe_switch(void **save, void *load);
asm(".text\n.p2align 4\n.weak mmmoe_switch\n.hidden mmmoe_switch\n.type mmmoe_switch,@function\n"
    "mmmoe_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

namespace host {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kStack = 64 << 10;

enum class Waits { nothing, block, warp };

struct Fibre {
  void *stack_pointer = nullptr;
  std::unique_ptr<char[]> stack;
  uint3 index{};
  bool is_done = false;
  Waits waits = Waits::nothing;
};

// The one block that is running, and how its fibres take turns.
struct Device {
  void *scheduler = nullptr;
  std::vector<Fibre> fibres;
  int running = 0;
  dim3 grid, block;
  uint3 block_index{};
  std::function<void()> body;
  std::vector<char> dynamic_shared;
  uint64_t exchange[2][kMostThreads];
  uint64_t seed = 1;
  bool by_priority = false;

  int draw(int below) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int>((seed >> 33) % static_cast<uint64_t>(below));
  }
};

inline Device &device() {
  static Device one;
  return one;
}

inline int lane() { return device().running % kWarp; }

inline void wait(Waits waits) {
  Device &d = device();
  Fibre &self = d.fibres[d.running];
  self.waits = waits;
  mmmoe_switch(&self.stack_pointer, d.scheduler);
}

inline void enter() {
  Device &d = device();
  d.body();
  Fibre &self = d.fibres[d.running];
  self.is_done = true;
  mmmoe_switch(&self.stack_pointer, d.scheduler);
  abort();  // nobody resumes a fibre that is done
}

inline void prepare(Fibre &fibre, int number) {
  Device &d = device();
  if (!fibre.stack) fibre.stack.reset(new char[kStack]);
  auto top = (reinterpret_cast<uintptr_t>(fibre.stack.get()) + kStack) & ~uintptr_t{15};
  void **sp = reinterpret_cast<void **>(top);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void *>(enter);
  for (int r = 0; r < 6; r++) *--sp = nullptr;
  fibre.stack_pointer = sp;
  fibre.is_done = false;
  fibre.waits = Waits::nothing;
  unsigned n = static_cast<unsigned>(number), x = d.block.x, y = d.block.y;
  fibre.index = {n % x, (n / x) % y, n / (x * y)};
}

// Lets go every warp, and then the block, all of whose living fibres wait for it. Says whether any was.
inline bool release(int threads) {
  Device &d = device();
  auto all_wait = [&](int from, int to, Waits what) {
    bool any = false;
    for (int i = from; i < to; i++) {
      if (d.fibres[i].is_done) continue;
      any = true;
      if (d.fibres[i].waits != what) return false;
    }
    return any;
  };
  bool released = false;
  auto let_go = [&](int from, int to, Waits what) {
    if (!all_wait(from, to, what)) return;
    for (int i = from; i < to; i++) d.fibres[i].waits = Waits::nothing;
    released = true;
  };
  for (int w = 0; w < threads; w += kWarp) let_go(w, std::min(w + kWarp, threads), Waits::warp);
  let_go(0, threads, Waits::block);
  return released;
}

inline void shuffle(std::vector<int> &order) {
  for (int i = static_cast<int>(order.size()) - 1; i > 0; i--) std::swap(order[i], order[device().draw(i + 1)]);
}

inline void run_block(int threads) {
  Device &d = device();
  if (static_cast<int>(d.fibres.size()) < threads) d.fibres.resize(threads);
  for (int i = 0; i < threads; i++) prepare(d.fibres[i], i);
  std::vector<int> order(threads), warps((threads + kWarp - 1) / kWarp);
  std::iota(order.begin(), order.end(), 0);
  std::iota(warps.begin(), warps.end(), 0);
  shuffle(warps);
  auto can_run = [&](int i) { return !d.fibres[i].is_done && d.fibres[i].waits == Waits::nothing; };
  while (true) {
    int chosen = -1;  // under priorities, the first warp that can run
    for (int w : warps)
      for (int i = w * kWarp; chosen < 0 && i < std::min((w + 1) * kWarp, threads); i++)
        if (can_run(i)) chosen = w;
    shuffle(order);
    bool progressed = false;
    for (int i : order) {
      if (!can_run(i) || (d.by_priority && i / kWarp != chosen)) continue;
      d.running = i;
      progressed = true;
      mmmoe_switch(&d.scheduler, d.fibres[i].stack_pointer);
    }
    progressed |= release(threads);
    if (std::all_of(d.fibres.begin(), d.fibres.begin() + threads, [](const Fibre &f) { return f.is_done; })) return;
    if (!progressed) {
      fprintf(stderr, "a barrier is not reached by every thread\n");
      abort();
    }
  }
}

template <class Body>
void launch(dim3 grid, dim3 block, size_t shared, Body body) {
  Device &d = device();
  d.grid = grid;
  d.block = block;
  d.body = body;
  d.dynamic_shared.assign(shared + 16, static_cast<char>(0xCD));  // memory that nobody set looks like it
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        d.block_index = {x, y, z};
        run_block(static_cast<int>(block.x * block.y * block.z));
      }
}

// Publishes a value to the warp and reads that of another lane.
template <class T>
T exchange(T value, int source) {
  Device &d = device();
  int self = d.running, first = self - self % kWarp;
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  d.exchange[0][self] = word;
  wait(Waits::warp);
  word = d.exchange[0][first + (source & (kWarp - 1))];
  wait(Waits::warp);
  memcpy(&value, &word, sizeof(T));
  return value;
}

// Publishes a value to the warp and returns a bit for each lane whose value satisfies `is`.
template <class Is>
unsigned vote(uint64_t value, Is is) {
  Device &d = device();
  int self = d.running, first = self - self % kWarp;
  d.exchange[1][self] = value;
  wait(Waits::warp);
  unsigned bits = 0;
  int threads = static_cast<int>(d.block.x * d.block.y * d.block.z);
  for (int i = 0; i < kWarp && first + i < threads; i++)
    if (!d.fibres[first + i].is_done && is(d.exchange[1][first + i])) bits |= 1u << i;
  wait(Waits::warp);
  return bits;
}

}  // namespace host

#define threadIdx (host::device().fibres[host::device().running].index)
#define blockIdx (host::device().block_index)
#define blockDim (host::device().block)
#define gridDim (host::device().grid)

#define LAUNCH(kernel, grid, block, shared, stream, ...) \
  host::launch(dim3(grid), dim3(block), shared, [=] { kernel(__VA_ARGS__); })
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(host::device().dynamic_shared.data())

static inline void __syncthreads() { host::wait(host::Waits::block); }
static inline void __syncwarp(unsigned = ~0u) { host::wait(host::Waits::warp); }
template <class T>
T __shfl_sync(unsigned, T value, int source, int = 32) { return host::exchange(value, source); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) { return host::exchange(value, host::lane() ^ mask); }
template <class T>
T __shfl_up_sync(unsigned, T value, int by, int = 32) {
  return host::exchange(value, host::lane() < by ? host::lane() : host::lane() - by);
}
static inline unsigned __ballot_sync(unsigned, int predicate) {
  return host::vote(predicate != 0, [](uint64_t v) { return v != 0; });
}
template <class T>
unsigned __match_any_sync(unsigned, T value) {
  uint64_t own = static_cast<uint64_t>(value);
  return host::vote(own, [own](uint64_t v) { return v == own; });
}
template <class T>
T atomicAdd(T *place, T value) {
  T old = *place;
  *place = old + value;
  return old;
}
using std::min;
static inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// How fibres take turns from now on: 0 at random, 1 by random fixed priorities of the warps.
extern "C" __attribute__((weak, used)) int mmmoe_host_schedule(uint64_t seed, int64_t by_priority) {
  host::device().seed = seed * 2 + 1;
  host::device().by_priority = by_priority != 0;
  return 0;
}

static inline cudaError_t last_error() { return cudaSuccess; }
