// The middle of a gated feed-forward block whose experts are LoRA updates of one frozen block, on a CPU:
//
//   h[p] = act(c_gate[n] + zg[p] Bg_e) * (c_up[n] + zu[p] Bu_e)       U[n] = sum over p of gate[p] h[p]
//   zd[p] = h[p] Ad_e
//
// with p a place in the order of experts, e its expert, n = order[p] / K its token, and zg, zu already scaled. The sum is
// taken before the frozen down projection, which is linear, so that one is done once a token. Nothing of size S * F is
// ever kept: the backward computes h anew from c. A thread owns a span of columns; sums over columns are kept for each
// span and added in one order.
//
//   c_gate, c_up (N, F)   Bg, Bu (E, F, R)   Ad (E, R, F)   zg, zu, zd (S, R)   gate (S)   U (N, F)
#include "small_products.h"

namespace {

constexpr int64_t kChunk = 32;  // slots worked on together

enum Activation : int { kSilu = 0, kGeluTanh = 1 };

template <class T>
struct Block {
  const T *c_gate, *c_up;
  const T *bg, *bu, *ad;
  const T *zg, *zu, *gate;
  const int64_t *order, *offset;
  int64_t N, K, E, R, F;
  int activation;

  int64_t token(int64_t p) const { return order[p] / K; }
  int64_t slots() const { return offset[E]; }
  int64_t spans() const { return (F + kSpan - 1) / kSpan; }
};

// act(x) = x * sigmoid(q(x)), with q(x) = x or that of the tanh form of GELU; and its slope.
template <class T>
struct Gate {
  T value, slope;
};
template <class T, int kActivation>
inline Gate<T> activate(T x) {
  constexpr T a = kActivation == kGeluTanh ? T(1.5957691216057308) : T(1), b = T(0.044715);
  const T q = kActivation == kGeluTanh ? a * (x + b * x * x * x) : x;
  const T dq = kActivation == kGeluTanh ? a * (1 + 3 * b * x * x) : T(1);
  const T e = exp_below(-std::fabs(q));
  const T s = (q >= 0 ? T(1) : e) / (1 + e);
  return {x * s, s + x * s * (1 - s) * dq};
}

// What a thread works in: one chunk of slots by one span of columns, and one expert's factors.
template <class T>
struct Bench {
  int64_t R, padded;
  std::vector<T> bg, bu, ad_by_rank;         // (R, span), (R, span), (span, padded)
  std::vector<T> gate, up;                   // (chunk, span)

  explicit Bench(int64_t R)
      : R(R), padded((R + VectorOf<T>::lanes - 1) / VectorOf<T>::lanes * VectorOf<T>::lanes), bg(R * kSpan),
        bu(R * kSpan), ad_by_rank(kSpan * padded), gate(kChunk * kSpan), up(kChunk * kSpan) {}

  void pack(const Block<T> &b, int64_t e, int64_t w, int64_t width) {
    transpose(b.bg + (e * b.F + w) * R, R, width, R, bg.data(), kSpan);
    transpose(b.bu + (e * b.F + w) * R, R, width, R, bu.data(), kSpan);
    transpose(b.ad + e * R * b.F + w, b.F, R, width, ad_by_rank.data(), padded);
  }

  // Pre-activations of the slots from place p on.
  void project(const Block<T> &b, int64_t p, int64_t count, int64_t w, int64_t width) {
    for (int64_t i = 0; i < count; i++) {
      std::copy_n(b.c_gate + b.token(p + i) * b.F + w, width, gate.data() + i * kSpan);
      std::copy_n(b.c_up + b.token(p + i) * b.F + w, width, up.data() + i * kSpan);
    }
    const auto row = [&](std::vector<T> &rows) { return [&](int64_t i) { return rows.data() + i * kSpan; }; };
    const auto z = [&](const T *rows) { return [&, rows](int64_t i) { return rows + (p + i) * R; }; };
    accumulate_rows<T>(count, row(gate), z(b.zg), bg.data(), kSpan, R, width);
    accumulate_rows<T>(count, row(up), z(b.zu), bu.data(), kSpan, R, width);
  }
};

// out[i] = sum over spans of part[span][i]
template <class T>
void add_parts(const std::vector<T> &part, int64_t spans, int64_t size, T *out) {
#pragma omp parallel for
  for (int64_t i = 0; i < size; i++) {
    T total = 0;
    for (int64_t b = 0; b < spans; b++) total += part[b * size + i];
    out[i] = total;
  }
}

template <class T, int kActivation>
void forward(const Block<T> &b, T *u_NF, T *zd_SR) {
  const int64_t size = b.slots() * b.R;
  std::vector<T> part(b.spans() * size);
#pragma omp parallel
  {
    Bench<T> bench(b.R);
#pragma omp for schedule(dynamic)
    for (int64_t span = 0; span < b.spans(); span++) {
      const int64_t w = span * kSpan, width = std::min(kSpan, b.F - w);
      for (int64_t n = 0; n < b.N; n++) std::fill_n(u_NF + n * b.F + w, width, T{0});
      for (int64_t e = 0; e < b.E; e++) {
        if (b.offset[e] == b.offset[e + 1]) continue;
        bench.pack(b, e, w, width);
        for (int64_t p = b.offset[e]; p < b.offset[e + 1]; p += kChunk) {
          const int64_t count = std::min(kChunk, b.offset[e + 1] - p);
          bench.project(b, p, count, w, width);
          for (int64_t i = 0; i < count; i++) {
            T *h = bench.gate.data() + i * kSpan, *u = u_NF + b.token(p + i) * b.F + w;
            const T *up = bench.up.data() + i * kSpan, weight = b.gate[p + i];
            for (int64_t v = 0; v < width; v++) {
              h[v] = activate<T, kActivation>(h[v]).value * up[v];
              u[v] += weight * h[v];
            }
          }
          dot_rows<T>(
              count, [&](int64_t i) { return bench.gate.data() + i * kSpan; }, bench.ad_by_rank.data(), bench.padded,
              [&](int64_t i) { return part.data() + span * size + (p + i) * b.R; }, b.R, width);
        }
      }
    }
  }
  add_parts(part, b.spans(), size, zd_SR);
}

// From dU and dzd (already with gate and scale): dc, dzg, dzu, the gates' gradient by way of U, dBg, dBu, dAd.
template <class T>
struct Gradients {
  const T *du_NF, *dzd_SR;
  T *dc_gate, *dc_up, *dzg_SR, *dzu_SR, *dgate_S, *dbg, *dbu, *dad;
};

template <class T, int kActivation>
void backward(const Block<T> &b, const Gradients<T> &g) {
  const int64_t S = b.slots(), R = b.R, F = b.F;
  std::vector<T> part_g(b.spans() * S * R), part_u(b.spans() * S * R), part_gate(b.spans() * S);
#pragma omp parallel
  {
    Bench<T> bench(R);
    std::vector<T> dh(kChunk * kSpan), h(kChunk * kSpan), turned(kChunk * R);
    std::vector<T> bg_by_rank(kSpan * bench.padded), bu_by_rank(kSpan * bench.padded), ad(R * kSpan);
    std::vector<T> sums(3 * R * kSpan);  // of dBg, dBu, dAd, as (R, span)
    const auto row = [](std::vector<T> &rows) { return [&rows](int64_t i) { return rows.data() + i * kSpan; }; };
#pragma omp for schedule(dynamic)
    for (int64_t span = 0; span < b.spans(); span++) {
      const int64_t w = span * kSpan, width = std::min(kSpan, F - w);
      for (int64_t n = 0; n < b.N; n++) {
        std::fill_n(g.dc_gate + n * F + w, width, T{0});
        std::fill_n(g.dc_up + n * F + w, width, T{0});
      }
      for (int64_t e = 0; e < b.E; e++) {
        std::fill(sums.begin(), sums.end(), T{0});
        bench.pack(b, e, w, width);
        for (int64_t v = 0; v < width; v++) {
          std::copy_n(b.bg + (e * F + w + v) * R, R, bg_by_rank.data() + v * bench.padded);
          std::copy_n(b.bu + (e * F + w + v) * R, R, bu_by_rank.data() + v * bench.padded);
        }
        for (int64_t r = 0; r < R; r++) std::copy_n(b.ad + (e * R + r) * F + w, width, ad.data() + r * kSpan);
        for (int64_t p = b.offset[e]; p < b.offset[e + 1]; p += kChunk) {
          const int64_t count = std::min(kChunk, b.offset[e + 1] - p);
          bench.project(b, p, count, w, width);
          for (int64_t i = 0; i < count; i++) {
            const T *du = g.du_NF + b.token(p + i) * F + w;
            for (int64_t v = 0; v < width; v++) dh[i * kSpan + v] = b.gate[p + i] * du[v];
          }
          accumulate_rows<T>(
              count, row(dh), [&](int64_t i) { return g.dzd_SR + (p + i) * R; }, ad.data(), kSpan, R, width);
          for (int64_t i = 0; i < count; i++) {
            const T *du = g.du_NF + b.token(p + i) * F + w, *slope = dh.data() + i * kSpan;
            T *pre = bench.gate.data() + i * kSpan, *up = bench.up.data() + i * kSpan, *out = h.data() + i * kSpan;
            T *dc_gate = g.dc_gate + b.token(p + i) * F + w, *dc_up = g.dc_up + b.token(p + i) * F + w;
            for (int64_t v = 0; v < width; v++) {
              const Gate<T> a = activate<T, kActivation>(pre[v]);
              out[v] = a.value * up[v];
              pre[v] = slope[v] * up[v] * a.slope;
              up[v] = slope[v] * a.value;
              dc_gate[v] += pre[v];
              dc_up[v] += up[v];
            }
            Vector<T> total = {};
            T rest = 0;
            int64_t v = 0;
            for (; v + VectorOf<T>::lanes <= width; v += VectorOf<T>::lanes) total += load(du + v) * load(out + v);
            for (; v < width; v++) rest += du[v] * out[v];
            part_gate[span * S + p + i] = sum<T>(total) + rest;
          }
          const auto to = [&](std::vector<T> &part) {
            return [&, span, p](int64_t i) { return part.data() + (span * S + p + i) * R; };
          };
          dot_rows<T>(count, row(bench.gate), bg_by_rank.data(), bench.padded, to(part_g), R, width);
          dot_rows<T>(count, row(bench.up), bu_by_rank.data(), bench.padded, to(part_u), R, width);
          const auto outer = [&](const T *z, int64_t which, std::vector<T> &rows) {
            transpose(z + p * R, R, count, R, turned.data(), kChunk);
            accumulate_rows<T>(
                R, [&](int64_t r) { return sums.data() + (which * R + r) * kSpan; },
                [&](int64_t r) { return turned.data() + r * kChunk; }, rows.data(), kSpan, count, width);
          };
          outer(b.zg, 0, bench.gate);
          outer(b.zu, 1, bench.up);
          outer(g.dzd_SR, 2, h);
        }
        transpose(sums.data(), kSpan, R, width, g.dbg + (e * F + w) * R, R);
        transpose(sums.data() + R * kSpan, kSpan, R, width, g.dbu + (e * F + w) * R, R);
        for (int64_t r = 0; r < R; r++)
          std::copy_n(sums.data() + (2 * R + r) * kSpan, width, g.dad + (e * R + r) * F + w);
      }
    }
  }
  add_parts(part_g, b.spans(), S * R, g.dzg_SR);
  add_parts(part_u, b.spans(), S * R, g.dzu_SR);
  add_parts(part_gate, b.spans(), S, g.dgate_S);
}

template <class T>
const T *as(const void *p) { return static_cast<const T *>(p); }
template <class T>
T *as(void *p) { return static_cast<T *>(p); }

}  // namespace

// This version keeps its sums in memory of its own.
EXPORT int64_t mmmoe_lora_ffn_workspace(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) { return 0; }

EXPORT int mmmoe_lora_ffn(const void *c_gate, const void *c_up, const void *zg, const void *zu, const void *bg,
                          const void *bu, const void *ad, const void *gate, const int64_t *order,
                          const int64_t *offset, void *u, void *zd, void *, int64_t N, int64_t K, int64_t E, int64_t R,
                          int64_t F, int64_t activation, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    const Block<T> block = {as<T>(c_gate), as<T>(c_up), as<T>(bg), as<T>(bu), as<T>(ad), as<T>(zg), as<T>(zu),
                            as<T>(gate),   order,       offset,    N,         K,         E,         R, F,
                            static_cast<int>(activation)};
    const auto run = activation == kGeluTanh ? forward<T, kGeluTanh> : forward<T, kSilu>;
    run(block, as<T>(u), as<T>(zd));
    return 0;
  });
}

EXPORT int mmmoe_lora_ffn_backward(const void *c_gate, const void *c_up, const void *zg, const void *zu,
                                   const void *bg, const void *bu, const void *ad, const void *gate,
                                   const int64_t *order, const int64_t *offset, const void *du, const void *dzd,
                                   void *dc_gate, void *dc_up, void *dzg, void *dzu, void *dgate, void *dbg, void *dbu,
                                   void *dad, void *, int64_t N, int64_t K, int64_t E, int64_t R, int64_t F,
                                   int64_t activation, int64_t type, void *) {
  return by_exact_type(type, [&](auto element) {
    using T = decltype(element);
    const Block<T> block = {as<T>(c_gate), as<T>(c_up), as<T>(bg), as<T>(bu), as<T>(ad), as<T>(zg), as<T>(zu),
                            as<T>(gate),   order,       offset,    N,         K,         E,         R, F,
                            static_cast<int>(activation)};
    const Gradients<T> gradients = {as<T>(du),  as<T>(dzd), as<T>(dc_gate), as<T>(dc_up), as<T>(dzg),
                                    as<T>(dzu), as<T>(dgate), as<T>(dbg),   as<T>(dbu),   as<T>(dad)};
    const auto run = activation == kGeluTanh ? backward<T, kGeluTanh> : backward<T, kSilu>;
    run(block, gradients);
    return 0;
  });
}
