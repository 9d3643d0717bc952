// The readout and its cross-entropy as one, some rows at a time. Compare with the twin,
// bptt/losses.py: fused().
//
// The probabilities are not normalised: e = exp(logit - the row's largest) stays in the logits'
// place, and what a row's sum and factor make of it, s = factor / Σ e, goes into the hidden states
// and into the result, which are smaller. The target's part is one row of W and of d_W.
#pragma once
#include <cmath>
#include <limits>

#include "arena.h"
#include "matrix.h"
#include "team.h"

namespace {

constexpr int64_t LABELS = 256;         // whose sum is a part of the row's, whoever adds it up
constexpr int64_t MOST_LOGITS = 1 << 21;  // at a time
constexpr int64_t READOUT_ROWS = 256;     // at a time, at most
constexpr int64_t FEW_ROWS = 48;          // for which W is read where it is
constexpr int64_t SMALL_READOUT = 200000; // multiplications that are not worth a second thread

template <class P> struct Readout {
    using T = Sum<P>;
    const bptt_readout &q;
    const int64_t N = q.rows, H = q.hidden_size, V = q.labels;
    const T *const hidden = static_cast<const T *>(q.hidden);
    const T *const weight = static_cast<const T *>(q.weight);
    const T *const bias = static_cast<const T *>(q.bias);
    const T *const factors = static_cast<const T *>(q.factors);
    T *const losses = static_cast<T *>(q.losses);
    T *const d_hidden = static_cast<T *>(q.d_hidden), *const d_weight = static_cast<T *>(q.d_weight);
    T *const d_bias = static_cast<T *>(q.d_bias);
    const bool gradients = d_hidden || d_weight || d_bias;
    // Logits end with whole vectors, and rows do not lie on the same places of the cache.
    const int64_t row = round_up<T>(V) + WIDTH<T>;
    const int64_t at_a_time = chunk();
    const int64_t parts = (V + LABELS - 1) / LABELS;
    T *logits, *largest, *sums, *of_target, *scale, *scaled_h;
    P *scaled, *slivers, *panel, *packed;
    P *rounded_h, *rounded_e;  // where products round: hidden states, [rows, H], and e, as the logits

    explicit Readout(const bptt_readout &readout) : q(readout) {}

    int64_t chunk() const {
        const int64_t most =
            std::max<int64_t>(1, std::min(READOUT_ROWS, MOST_LOGITS / std::max<int64_t>(V, 1)));
        const int64_t chunks = std::max<int64_t>(1, (N + most - 1) / most);
        return (N + chunks - 1) / chunks;
    }
    int team() const { return N * H * V < SMALL_READOUT ? 1 : int(q.threads); }

    bool reserve(Arena &arena) {
        const int64_t threads = team();
        const int64_t sizes[] = {
            at_a_time * row,                                   // logits
            threads * at_a_time,                               // largest, of each thread's labels
            parts * at_a_time,                                 // sums
            at_a_time, threads * at_a_time,                    // of_target; scale, of each thread
            d_weight ? threads * at_a_time * H : 0,            // scaled_h: s h, likewise
        };
        const int64_t of_products[] = {
            d_weight ? threads * paired<P>(at_a_time) * round_up<T>(H) : 0,  // scaled: its panels
            d_weight ? paired<P>(at_a_time) * row : 0,         // slivers
            threads * paired<P>(H) * MOST_VECTORS * WIDTH<T>,  // panel, of each thread
            d_hidden ? DEPTH<P> * round_up<T>(H) : 0,          // packed
            IS_ROUNDED<P> ? at_a_time * paired<P>(H) : 0,
            IS_ROUNDED<P> && gradients ? at_a_time * row : 0,
        };
        T **places[] = {&logits, &largest, &sums, &of_target, &scale, &scaled_h};
        P **for_products[] = {&scaled, &slivers, &panel, &packed, &rounded_h, &rounded_e};
        if (!arena.reserve(Arena::size_of(sizes, places) + Arena::size_of(of_products, for_products)))
            return false;
        arena.take(sizes, places);
        arena.take(of_products, for_products);
        return true;
    }

    void work(const Member &me) {
        const Range labels = me.share(V, LABELS), units = me.share(H, WIDTH<T>);
        if (d_weight && N == 0)
            std::fill(d_weight + labels.begin * H, d_weight + labels.end * H, T(0));
        if (d_bias) std::fill(d_bias + labels.begin, d_bias + labels.end, T(0));
        for (int64_t first = 0; first < N; first += at_a_time) {
            const int64_t n = std::min(at_a_time, N - first);
            make_logits(me, first, n, labels);
            me.wait();
            exponentials(me, first, n, labels);
            me.wait();
            const T *const s = finish_rows(me, first, n);
            if (d_weight || d_bias) of_weight(me, first, n, labels, s);
            if (d_hidden) of_hidden(first, n, units, s);
            if (first + n < N) me.wait();  // the logits' place is used again
        }
    }

    // W h + b of the thread's labels, and the largest of each row.
    void make_logits(const Member &me, int64_t first, int64_t n, const Range &labels) {
        T *own = largest + me.number * at_a_time;
        std::fill(own, own + n, -std::numeric_limits<T>::infinity());
        P *const place = panel + me.number * paired<P>(H) * MOST_VECTORS * WIDTH<T>;
        const Left<P> of_rows = states(me, first, n);
        const int widest = widest_panel(n);
        for (int64_t v = labels.begin; v < labels.end;) {
            const int64_t left = (labels.end - v + WIDTH<T> - 1) / WIDTH<T>;
            const int64_t wide = part(left, widest) * WIDTH<T>;
            const Panels<P> b{place, H, std::min(wide, labels.end - v), widest};
            pack_transposed(b, weight + v * H, H);
            const Panels<P> whole{place, H, wide, widest};
            multiply<P>(n, H, of_rows, whole, logits + v, row, false);
            for (int64_t i = 0; i < n; i++) own[i] = finish_panel(logits + i * row, v, wide, own[i]);
            v += wide;
        }
    }

    // Hidden states as the left side of a product.
    Left<P> states(const Member &me, int64_t first, int64_t n) {
        if constexpr (!IS_ROUNDED<P>) return {hidden + first * H, H};
        const Range rows = me.share(n);
        const int64_t row = paired<P>(H);
        round_rows<P>(rows.size(), 0, H, H, hidden + (first + rows.begin) * H, H,
                      rounded_h + rows.begin * row, row);
        me.wait();
        return {rounded_h, row};
    }
    const P *e() const {
        if constexpr (IS_ROUNDED<P>) return rounded_e;
        else return logits;
    }

    // Add the bias, and put the labels that there are not out of the way; returns the largest.
    T finish_panel(T *to, int64_t v, int64_t wide, T most) {
        V_ best = all<T>(most);
        for (int64_t j = v; j < v + wide; j += WIDTH<T>) {
            V_ l = load(to + j);
            if (bias) l += load(bias + j, V - j);
            if (j + WIDTH<T> > V) {
                store(to + j, l);
                for (int64_t i = V; i < j + WIDTH<T>; i++)
                    to[i] = -std::numeric_limits<T>::infinity();
                l = load(to + j);
            }
            store(to + j, l);
            best = l > best ? l : best;
        }
        T found = best[0];
        for (int i = 1; i < WIDTH<T>; i++) found = best[i] > found ? best[i] : found;
        return found;
    }

    // e = exp(logit - largest), in its place, and the sums of each part of the labels.
    void exponentials(const Member &me, int64_t first, int64_t n, const Range &labels) {
        for (int64_t i = 0; i < n; i++) {
            T most = largest[i];
            for (int t = 1; t < me.team; t++)
                most = largest[t * at_a_time + i] > most ? largest[t * at_a_time + i] : most;
            const int64_t target = q.targets[first + i];
            if (labels.begin <= target && target < labels.end)
                of_target[i] = logits[i * row + target] - most;
            for (int64_t v = labels.begin; v < labels.end; v += LABELS) {
                T *const l = logits + i * row + v;
                const int64_t width = std::min(LABELS, V - v);
                V_ sum{};
                for (int64_t j = 0; j < width; j += WIDTH<T>) {
                    const V_ d = load(l + j) - most;
                    const V_ e = d < Vector<T>::least ? V_{} : exp_<T>(d);
                    sum += e;
                    if (gradients) store(l + j, e);
                    if (IS_ROUNDED<P> && gradients)
                        Operand<P>::store_row(rounded_e + i * row + v + j, e, WIDTH<T>);
                }
                T total = 0;
                for (int k = 0; k < WIDTH<T>; k++) total += sum[k];
                sums[v / LABELS * at_a_time + i] = total;
            }
        }
    }

    // The losses, by one thread, and the rows' scales, by each for itself.
    const T *finish_rows(const Member &me, int64_t first, int64_t n) {
        T *const own = scale + me.number * at_a_time;
        for (int64_t i = 0; i < n; i++) {
            T sum = 0;
            for (int64_t p = 0; p < parts; p++) sum += sums[p * at_a_time + i];
            if (me.number == 0) losses[first + i] = std::log(sum) - of_target[i];
            own[i] = (factors ? factors[first + i] : T(1)) / sum;
        }
        return own;
    }

    // d_W = eᵀ (s h), less the factor times h in the target's row; d_b likewise.
    void of_weight(const Member &me, int64_t first, int64_t n, const Range &labels, const T *scale) {
        if (d_weight) {
            P *const place = scaled + me.number * paired<P>(at_a_time) * round_up<T>(H);
            const Panels<P> hs{place, n, H, widest_panel(MOST_ROWS)};
            const T *const of_rows = scale_states(me, first, n, scale);
            pack_rows(hs, [&](int64_t i) { return of_rows + i * H; });
            P *const own = slivers + labels.begin * paired<P>(n);
            pack_slivers(labels.size(), n, e() + labels.begin, row, hs.widest, own);
            multiply<P>(labels.size(), n, {own, 0}, hs, d_weight + labels.begin * H, H, first > 0);
        }
        for (int64_t i = 0; i < n; i++) {
            const T s = scale[i];
            const T *const e = logits + i * row;
            if (d_bias)
                for (int64_t v = labels.begin; v < labels.end; v++) d_bias[v] += s * e[v];
            const int64_t target = q.targets[first + i];
            if (target < labels.begin || target >= labels.end) continue;
            const T factor = factors ? factors[first + i] : T(1);
            if (d_bias) d_bias[target] -= factor;
            if (d_weight)
                for (int64_t u = 0; u < H; u++)
                    d_weight[target * H + u] -= factor * hidden[(first + i) * H + u];
        }
    }

    // s h, of each thread for itself.
    const T *scale_states(const Member &me, int64_t first, int64_t n, const T *scale) {
        T *const own = scaled_h + me.number * at_a_time * H;
        for (int64_t i = 0; i < n; i++)
            for (int64_t u = 0; u < H; u++) own[i * H + u] = hidden[(first + i) * H + u] * scale[i];
        return own;
    }

    // d_h = s (e W), less the factor times the target's row of W, for the thread's units.
    void of_hidden(int64_t first, int64_t n, const Range &units, const T *scale) {
        if (units.size() <= 0) return;
        T *const to = d_hidden + first * H + units.begin;
        const T *const w = weight + units.begin;
        P *const place = packed + units.begin * DEPTH<P>;
        if (!IS_ROUNDED<P> && n <= FEW_ROWS) {
            if constexpr (!IS_ROUNDED<P>)
                multiply_in_place<T>(n, V, {e(), row}, w, H, units.size(), place, to, H, false);
        } else {
            for (int64_t v = 0; v < V; v += DEPTH<P>) {
                const int64_t deep = std::min(DEPTH<P>, V - v);
                const Panels<P> panels{place, deep, units.size(), widest_panel(n)};
                pack_rows(panels, [&](int64_t k) { return w + (v + k) * H; });
                multiply<P>(n, deep, {e() + v, row}, panels, to, H, v > 0);
            }
        }
        for (int64_t i = 0; i < n; i++) {
            const T s = scale[i], factor = factors ? factors[first + i] : T(1);
            const T *const of_label = weight + q.targets[first + i] * H;
            T *const d = d_hidden + (first + i) * H;
            for (int64_t u = units.begin; u < units.end; u++) d[u] = s * d[u] - factor * of_label[u];
        }
    }

private:
    typedef typename Vector<T>::type V_;
};

}  // namespace
