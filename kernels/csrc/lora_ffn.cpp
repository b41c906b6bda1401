// The middle of a gated feed-forward block whose experts are LoRA updates of one frozen block, on a CPU:
//
//   h[p] = act(c_gate[n] + zg[p] Bg_e) * (c_up[n] + zu[p] Bu_e)       U[n] = sum over p of gate[p] h[p]
//   zd[p] = h[p] Ad_e
//
// with p a place in the order of experts, e its expert, n = order[p] / K its token, and zg, zu already scaled. The sum is
// taken before the frozen down projection, which is linear, so that one is done once a token. Nothing of size S * F is
// ever kept: the backward computes h anew from c.
//
//   c_gate, c_up (N, F)   Bg, Bu (E, F, R)   Ad (E, R, F)   zg, zu, zd (S, R)   gate (S)
//
// A call is for some of the columns, `begin` to `begin + width`: U and the gradients of c are (N, width) and lie as the
// products want them, sums over columns go on from call to call. A thread owns a stripe of columns and goes over it span
// by span, in a span over blocks of tokens, in a block over the experts' chunks of slots (hidden_tiles.h). Sums are kept
// for each stripe and added in the order of columns, so that neither threads nor calls change a bit.
#include <utility>

#include "hidden_tiles.h"

namespace {

constexpr int64_t kStripeSpans = 2;   // of a stripe: each costs an (S, R) of partial sums, and a thread needs one
constexpr int64_t kCallStripes = 4;   // of a call, or as many as there are threads
constexpr int64_t kAhead = 12;        // rows; in rows far apart nothing else asks for what comes next
constexpr int64_t kBlock = 1024;      // tokens of a block: of 64 experts with 2 chosen, each has a chunk of 32 slots

// How a call is cut, and what it needs to work in; the same for any number of threads but for the room of each.
struct Cut {
  int64_t N, K, E, R, F, begin, width;
  bool is_backward;

  int64_t slots() const { return N * K; }
  int64_t padded() const { return (R + kRankPad - 1) / kRankPad * kRankPad; }
  int64_t spans() const { return (width + kWidth - 1) / kWidth; }
  int64_t stripes() const { return (spans() + kStripeSpans - 1) / kStripeSpans; }
  int64_t tokens() const { return std::min(kBlock, N); }
  int64_t blocks() const { return (N + kBlock - 1) / kBlock; }
  int threads() const { return std::max<int>(1, std::min<int64_t>(omp_get_max_threads(), stripes())); }

  int64_t projections() const { return is_backward ? 3 : 2; }
  int64_t tile_size() const { return projections() * R * kTile; }
  int64_t turned_size() const { return (slots() / kTile + E * blocks()) * tile_size(); }
  int64_t part_size() const { return slots() * padded(); }
  int64_t parts_size() const {
    return stripes() * (is_backward ? 2 * part_size() + slots() * kRankPad : part_size());
  }
  int64_t factors_size() const { return (is_backward ? 6 * R + 2 * padded() : 2 * R + padded()) * kWidth; }
  int64_t room_size() const {
    return E * factors_size() + (is_backward ? 5 : 3) * tokens() * kWidth + (is_backward ? 3 : 1) * kChunk * kWidth;
  }
  int64_t work_size() const { return turned_size() + parts_size() + threads() * room_size() + kRankPad; }
};

template <class T>
struct Block {
  Cut cut;
  const T *c_gate, *c_up;
  const T *bg, *bu, *ad;
  const T *z[3];  // zg, zu, dzd
  const T *gate;
  const int64_t *order, *offset;
  T *work;

  int64_t token(int64_t p) const { return order[p] / cut.K; }
};

// Rows (N, width), in slices of some of their columns: (columns) of row n of slice i begin at i * slice + n * stride.
template <class T>
struct Slices {
  T *data;
  int64_t columns, slice, stride;

  T *at(int64_t column) const { return data + column / columns * slice + column % columns; }
};

// Slots of one expert whose tokens lie in one block.
struct Chunk {
  int64_t e, place;
  int count;
  int64_t tile;  // number of its first tile
};

// The chunks of every block, and rank-wide rows turned for the tiles: (projections, R, kTile) for each.
template <class T>
struct Plan {
  std::vector<Chunk> chunks;
  std::vector<int64_t> first;  // of each block

  explicit Plan(const Block<T> &b) {
    const Cut &s = b.cut;
    int64_t tile = 0;
    std::vector<int64_t> at(b.offset, b.offset + s.E);
    for (int64_t block = 0; block < s.blocks(); block++) {
      first.push_back(chunks.size());
      for (int64_t e = 0; e < s.E; e++) {
        const int64_t *end = std::lower_bound(b.order + at[e], b.order + b.offset[e + 1], (block + 1) * kBlock * s.K);
        for (int64_t count; at[e] < end - b.order; at[e] += count) {
          count = std::min(kChunk, end - b.order - at[e]);
          chunks.push_back({e, at[e], static_cast<int>(count), tile});
          tile += (count + kTile - 1) / kTile;
        }
      }
    }
    first.push_back(chunks.size());
    if (s.begin > 0) return;  // the call before left them turned
#pragma omp parallel for
    for (size_t c = 0; c < chunks.size(); c++)
      for (int64_t q = 0; q < s.projections(); q++)
        for (int64_t i = 0; i < (chunks[c].count + kTile - 1) / kTile * kTile; i++) {
          T *to = b.work + (chunks[c].tile + i / kTile) * s.tile_size() + q * s.R * kTile + i % kTile;
          const T *from = b.z[q] + (chunks[c].place + i) * s.R;
          for (int64_t r = 0; r < s.R; r++) to[r * kTile] = i < chunks[c].count ? from[r] : T{0};
        }
  }
};

// What a thread works in.
template <class T>
struct Room {
  const Block<T> &b;
  const Cut &s;
  T *next;
  Rows<T> rows;
  T *h, *dgate_pre, *dup_pre, *factors;

  explicit Room(const Block<T> &b)
      : b(b), s(b.cut), next(b.work + s.turned_size() + s.parts_size() + omp_get_thread_num() * s.room_size()) {
    const int64_t size = s.tokens() * kWidth, chunk = kChunk * kWidth;
    rows = {take(size), take(size), take(size)};
    if (s.is_backward) rows.dc_gate = take(size), rows.dc_up = take(size);
    h = take(chunk);
    if (s.is_backward) dgate_pre = take(chunk), dup_pre = take(chunk);
    factors = next;
  }

  T *take(int64_t size) { return std::exchange(next, next + size); }

  Factors<T> factors_of(int64_t e) const {
    T *at = factors + e * s.factors_size(), *by_rank = at + 2 * s.R * kWidth;
    if (!s.is_backward) return {at, at + s.R * kWidth, nullptr, nullptr, nullptr, by_rank};
    return {at, at + s.R * kWidth, by_rank, by_rank + s.R * kWidth,
            by_rank + (s.R + s.padded()) * kWidth, nullptr};
  }
  // Sums of dBg, dBu, dAd, each (R, kWidth).
  T *sums_of(int64_t e) const { return factors + (e + 1) * s.factors_size() - 3 * s.R * kWidth; }

  // Brings the factors of every expert that has slots.
  void pack(int64_t w, int64_t width) const {
    const int64_t R = s.R, padded = s.padded();
    for (int64_t e = 0; e < s.E; e++) {
      if (b.offset[e] == b.offset[e + 1]) continue;
      const Factors<T> f = factors_of(e);
      const T *bg = b.bg + (e * s.F + w) * R, *bu = b.bu + (e * s.F + w) * R, *ad = b.ad + e * R * s.F + w;
      if (width < kWidth || R < padded) std::fill_n(factors + e * s.factors_size(), s.factors_size(), T{0});
      transpose(bg, R, width, R, f.bg, kWidth);
      transpose(bu, R, width, R, f.bu, kWidth);
      if (!s.is_backward) {
        transpose(ad, s.F, R, width, f.ad_by_rank, padded);
        continue;
      }
      for (int64_t v = 0; v < width; v++) std::copy_n(bg + v * R, R, f.bg_by_rank + v * padded);
      for (int64_t v = 0; v < width; v++) std::copy_n(bu + v * R, R, f.bu_by_rank + v * padded);
      for (int64_t r = 0; r < R; r++) std::copy_n(ad + r * s.F, width, f.ad + r * kWidth);
    }
  }

  template <int kWrites>
  static void ask(const T *row) {
    for (int64_t v = 0; v < kWidth; v += 64 / sizeof(T)) __builtin_prefetch(row + v, kWrites);
  }
  // Copies a block's rows of a span, which begins at `from`, and fills them up with zeros.
  void bring(const T *from, int64_t stride, int64_t block, int64_t width, T *to) const {
    const int64_t begin = block * kBlock, end = std::min(s.N, begin + kBlock);
    for (int64_t n = begin; n < end; n++, to += kWidth) {
      ask<0>(from + (n + kAhead) * stride);
      if (width == kWidth)
        memcpy(to, from + n * stride, kWidth * sizeof(T));
      else
        std::fill(std::copy_n(from + n * stride, width, to), to + kWidth, T{0});
    }
  }
  void take_back(const T *from, int64_t block, int64_t width, T *to, int64_t stride) const {
    const int64_t begin = block * kBlock, end = std::min(s.N, begin + kBlock);
    for (int64_t n = begin; n < end; n++, from += kWidth) {
      ask<1>(to + (n + kAhead) * stride);
      if (width == kWidth)
        memcpy(to + n * stride, from, kWidth * sizeof(T));
      else
        std::copy_n(from, width, to + n * stride);
    }
  }

  // Calls run(number of rows as a constant, first slot in the chunk, count, rows of tokens, turned rows).
  template <class Run>
  void over_tiles(const Chunk &chunk, int64_t block, Run run) const {
    for (int from = 0; from < chunk.count; from += kTile) {
      const int count = std::min(kTile, chunk.count - from);
      int64_t at[kTile];
      for (int i = 0; i < kTile; i++)
        at[i] = (b.token(chunk.place + from + std::min(i, count - 1)) - block * kBlock) * kWidth;
      const T *turned = b.work + (chunk.tile + from / kTile) * s.tile_size();
      const T *z[3] = {turned, turned + s.R * kTile, turned + 2 * s.R * kTile};
      if (count > kTile / 2)
        run(std::integral_constant<int, kTile>{}, from, count, at, z);
      else
        run(std::integral_constant<int, kTile / 2>{}, from, count, at, z);
    }
  }
};

// Calls run(room, stripe, column, width, whether the span is the stripe's first) for every span.
template <class T, class Run>
void over_spans(const Block<T> &b, Run run) {
  const Cut &s = b.cut;
#pragma omp parallel num_threads(s.threads())
  {
    Room<T> room(b);
#pragma omp for schedule(dynamic)
    for (int64_t stripe = 0; stripe < s.stripes(); stripe++) {
      const int64_t begin = stripe * kStripeSpans, end = std::min(s.spans(), begin + kStripeSpans);
      for (int64_t span = begin; span < end; span++) {
        const int64_t w = s.begin + span * kWidth, width = std::min(kWidth, s.begin + s.width - w);
        room.pack(w, width);
        run(room, stripe, w, width, span == begin);
      }
    }
  }
}

// out[p][r] = or += sum over stripes of part[stripe][p][r]
template <class T>
void add_parts(const T *part, const Cut &s, T *out_SR) {
#pragma omp parallel for
  for (int64_t p = 0; p < s.slots(); p++)
    for (int64_t r = 0; r < s.R; r++) {
      T total = s.begin > 0 ? out_SR[p * s.R + r] : T{0};
      for (int64_t stripe = 0; stripe < s.stripes(); stripe++) total += part[stripe * s.part_size() + p * s.padded() + r];
      out_SR[p * s.R + r] = total;
    }
}

template <class T, int kActivation>
void forward(const Block<T> &b, const Slices<T> &u, T *zd_SR) {
  const Cut &s = b.cut;
  const Plan<T> plan(b);
  T *part = b.work + s.turned_size();
  over_spans(b, [&](const Room<T> &room, int64_t stripe, int64_t w, int64_t width, bool is_first) {
    for (int64_t block = 0; block < s.blocks(); block++) {
      room.bring(b.c_gate + w, s.F, block, width, room.rows.c_gate);
      room.bring(b.c_up + w, s.F, block, width, room.rows.c_up);
      std::fill_n(room.rows.u, s.tokens() * kWidth, T{0});
      for (int64_t c = plan.first[block]; c < plan.first[block + 1]; c++) {
        const Chunk &chunk = plan.chunks[c];
        const Factors<T> f = room.factors_of(chunk.e);
        room.over_tiles(chunk, block, [&](auto rows, int from, int count, const int64_t *at, const T *const *z) {
          T gate[kTile];
          for (int i = 0; i < kTile; i++) gate[i] = i < count ? b.gate[chunk.place + from + i] : 0;
          T *to = part + stripe * s.part_size() + (chunk.place + from) * s.padded();
          forward_tile<T, kActivation, rows()>(room.rows, at, count, gate, z, f, s.R, room.h);
          dot_tile<T, rows()>(room.h, count, f.ad_by_rank, s.padded(), to, is_first);
        });
      }
      room.take_back(room.rows.u, block, width, u.at(w - s.begin), u.stride);
    }
  });
  add_parts(part, s, zd_SR);
}

// From dU and dzd (already with gate and scale): dc, dzg, dzu, the gates' gradient by way of U, dBg, dBu, dAd.
template <class T>
struct Gradients {
  const T *du_NW;
  Slices<T> dc_gate, dc_up;
  T *dzg_SR, *dzu_SR, *dgate_S, *dbg, *dbu, *dad;
};

template <class T, int kActivation>
void backward(const Block<T> &b, const Gradients<T> &g) {
  const Cut &s = b.cut;
  const int64_t R = s.R, F = s.F;
  const Plan<T> plan(b);
  T *part_g = b.work + s.turned_size(), *part_u = part_g + s.stripes() * s.part_size();
  T *dots = part_u + s.stripes() * s.part_size();
  over_spans(b, [&](const Room<T> &room, int64_t stripe, int64_t w, int64_t width, bool is_first) {
    for (int64_t e = 0; e < s.E; e++) std::fill_n(room.sums_of(e), 3 * R * kWidth, T{0});
    for (int64_t block = 0; block < s.blocks(); block++) {
      room.bring(b.c_gate + w, s.F, block, width, room.rows.c_gate);
      room.bring(b.c_up + w, s.F, block, width, room.rows.c_up);
      room.bring(g.du_NW + w - s.begin, s.width, block, width, room.rows.u);
      std::fill_n(room.rows.dc_gate, s.tokens() * kWidth, T{0});
      std::fill_n(room.rows.dc_up, s.tokens() * kWidth, T{0});
      for (int64_t c = plan.first[block]; c < plan.first[block + 1]; c++) {
        const Chunk &chunk = plan.chunks[c];
        const Factors<T> f = room.factors_of(chunk.e);
        room.over_tiles(chunk, block, [&](auto rows, int from, int count, const int64_t *at, const T *const *z) {
          const int64_t p = chunk.place + from, row = from * kWidth;
          T gate[kTile];
          for (int i = 0; i < kTile; i++) gate[i] = i < count ? b.gate[p + i] : 0;
          backward_tile<T, kActivation, rows()>(room.rows, at, count, gate, z, f, R, room.h + row, room.dgate_pre + row,
                                                room.dup_pre + row, dots + (stripe * s.slots() + p) * kRankPad,
                                                is_first);
          const int64_t to = stripe * s.part_size() + p * s.padded();
          dot_tile<T, rows()>(room.dgate_pre + row, count, f.bg_by_rank, s.padded(), part_g + to, is_first);
          dot_tile<T, rows()>(room.dup_pre + row, count, f.bu_by_rank, s.padded(), part_u + to, is_first);
        });
        T *sums = room.sums_of(chunk.e);
        outer(b.z[0] + chunk.place * R, R, room.dgate_pre, chunk.count, sums);
        outer(b.z[1] + chunk.place * R, R, room.dup_pre, chunk.count, sums + R * kWidth);
        outer(b.z[2] + chunk.place * R, R, room.h, chunk.count, sums + 2 * R * kWidth);
      }
      room.take_back(room.rows.dc_gate, block, width, g.dc_gate.at(w - s.begin), g.dc_gate.stride);
      room.take_back(room.rows.dc_up, block, width, g.dc_up.at(w - s.begin), g.dc_up.stride);
    }
    for (int64_t e = 0; e < s.E; e++) {
      const T *sums = room.sums_of(e);
      transpose(sums, kWidth, R, width, g.dbg + (e * F + w) * R, R);
      transpose(sums + R * kWidth, kWidth, R, width, g.dbu + (e * F + w) * R, R);
      for (int64_t r = 0; r < R; r++)
        std::copy_n(sums + (2 * R + r) * kWidth, width, g.dad + (e * R + r) * F + w);
    }
  });
  add_parts(part_g, s, g.dzg_SR);
  add_parts(part_u, s, g.dzu_SR);
#pragma omp parallel for
  for (int64_t p = 0; p < s.slots(); p++) {
    T total = s.begin > 0 ? g.dgate_S[p] : T{0};
    for (int64_t stripe = 0; stripe < s.stripes(); stripe++)
      total += sum<T>(load(dots + (stripe * s.slots() + p) * kRankPad));
    g.dgate_S[p] = total;
  }
}

template <class T>
const T *as(const void *p) { return static_cast<const T *>(p); }
template <class T>
T *as(void *p) { return static_cast<T *>(p); }

}  // namespace

// Columns of a call: few, so that U and the gradients of c stay near, but a stripe for each thread; whole slices of the
// products' inner axis (product.cpp), so that they add up in the same order whatever the number of threads. Launchers
// without this question, those for a GPU, take all columns at once.
EXPORT int mmmoe_lora_ffn_columns() {
  const int64_t turns = (omp_get_max_threads() + kCallStripes - 1) / kCallStripes;
  return static_cast<int>(turns * kCallStripes * kStripeSpans * kWidth);
}

// For calls of at most `width` columns, the first of which begins at 0; all calls of a pass need the same workspace.
EXPORT int64_t mmmoe_lora_ffn_workspace(int64_t N, int64_t K, int64_t E, int64_t R, int64_t width, int64_t is_backward) {
  return Cut{N, K, E, R, width, 0, width, is_backward != 0}.work_size();
}

// U lies in slices.
EXPORT int mmmoe_lora_ffn(const void *c_gate, const void *c_up, const void *zg, const void *zu, const void *bg,
                          const void *bu, const void *ad, const void *gate, const int64_t *order, const int64_t *offset,
                          void *u, void *zd, void *work, int64_t N, int64_t K, int64_t E, int64_t R, int64_t F,
                          int64_t begin, int64_t width, int64_t columns, int64_t slice, int64_t stride,
                          int64_t activation, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    const Block<T> block = {
        {N, K, E, R, F, begin, width, false}, as<T>(c_gate), as<T>(c_up), as<T>(bg), as<T>(bu), as<T>(ad),
        {as<T>(zg), as<T>(zu)}, as<T>(gate), order, offset, as<T>(work)};
    const auto run = activation == kGeluTanh ? forward<T, kGeluTanh> : forward<T, kSilu>;
    run(block, {as<T>(u), columns, slice, stride}, as<T>(zd));
    return 0;
  });
}

// dc_gate and dc_up lie in slices, du is (N, width).
EXPORT int mmmoe_lora_ffn_backward(const void *c_gate, const void *c_up, const void *zg, const void *zu, const void *bg,
                                   const void *bu, const void *ad, const void *gate, const int64_t *order,
                                   const int64_t *offset, const void *du, const void *dzd, void *dc_gate, void *dc_up,
                                   void *dzg, void *dzu, void *dgate, void *dbg, void *dbu, void *dad, void *work,
                                   int64_t N, int64_t K, int64_t E, int64_t R, int64_t F, int64_t begin, int64_t width,
                                   int64_t columns, int64_t slice, int64_t stride, int64_t activation, int64_t type,
                                   void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    const Block<T> block = {
        {N, K, E, R, F, begin, width, true}, as<T>(c_gate), as<T>(c_up), as<T>(bg), as<T>(bu), as<T>(ad),
        {as<T>(zg), as<T>(zu), as<T>(dzd)}, as<T>(gate), order, offset, as<T>(work)};
    const Gradients<T> gradients = {as<T>(du),
                                    {as<T>(dc_gate), columns, slice, stride},
                                    {as<T>(dc_up), columns, slice, stride},
                                    as<T>(dzg), as<T>(dzu), as<T>(dgate), as<T>(dbg), as<T>(dbu), as<T>(dad)};
    const auto run = activation == kGeluTanh ? backward<T, kGeluTanh> : backward<T, kSilu>;
    run(block, gradients);
    return 0;
  });
}
