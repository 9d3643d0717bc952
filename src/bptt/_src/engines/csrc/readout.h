// The readout and its cross-entropy as one, some rows and a block of labels at a time. Compare with
// the twin, bptt/losses.py.
//
// The probabilities are not normalised: e = exp(logit - the largest so far) stays in the logits'
// place, and what a row's sum and factor make of it, factor / Σ e, goes into the hidden states and
// into the result, which are smaller. Where a later block has a larger logit, what was summed before
// is made smaller, and so is what the blocks before are multiplied by in the end. The target's part
// is one row of W and of d_W.
//
// A row belongs to one thread, until its sum is known; then a block of labels does. The weights of
// a block are packed by all.
#pragma once
#include <cmath>
#include <limits>

#include "arena.h"
#include "matrix.h"
#include "team.h"

namespace {

constexpr int64_t LABELS = 480;           // of a block: whole panels, and it stays in the second cache
constexpr int64_t MOST_LOGITS = 1 << 23;  // that are kept at a time, for d_W
constexpr int64_t READOUT_ROWS = 256;     // at a time, at most: as many for any number of threads
constexpr int64_t FEW_ROWS = 48;          // for which W is read where it is
constexpr int64_t SMALL_READOUT = 200000; // multiplications that are not worth a second thread

template <class P> struct Readout {
    using T = Sum<P>;
    using Vec = V<T>;
    static constexpr int64_t W = WIDTH<T>;

    const bptt_readout &q;
    const int64_t N = q.rows, H = q.hidden_size, labels = q.labels;
    const T *const hidden = static_cast<const T *>(q.hidden);
    const T *const weight = static_cast<const T *>(q.weight);
    const T *const bias = static_cast<const T *>(q.bias);
    const T *const factors = static_cast<const T *>(q.factors);
    T *const losses = static_cast<T *>(q.losses);
    T *const d_hidden = static_cast<T *>(q.d_hidden), *const d_weight = static_cast<T *>(q.d_weight);
    T *const d_bias = static_cast<T *>(q.d_bias);
    const bool keeps = d_weight || d_bias;  // e, for all labels
    const int64_t blocks = (labels + LABELS - 1) / LABELS, Hp = round_up<T>(H);
    const int64_t at_a_time = chunk();
    const bool few_logits = !IS_ROUNDED<P> && at_a_time <= FEW;
    const bool few_hidden = !IS_ROUNDED<P> && at_a_time <= FEW_ROWS;

    T *logits;   // [blocks that are kept, rows, LABELS]; then e
    P *rounded_e, *rounded_h;  // where products round: likewise, and the hidden states, [rows, H]
    T *largest, *of_block;     // of each row so far; [blocks, rows], as it was when e was made
    T *sums, *of_target;       // [rows]: Σ e; the target's logit
    T *d_h;                    // Σ e W, [rows, Hp]
    P *to_logits[2], *to_hidden[2];      // panels of a block of W, one way and the other
    T *scale, *scaled_h;                 // of each thread: [rows], [rows, H]
    P *scaled, *slivers;                 // of each thread: their panels; e of a block

    explicit Readout(const bptt_readout &readout) : q(readout) {}

    int team() const { return N * H * labels < SMALL_READOUT ? 1 : int(q.threads); }

    int64_t chunk() const {
        int64_t most = READOUT_ROWS;
        if (keeps) most = std::max<int64_t>(1, std::min(most, MOST_LOGITS / labels));
        const int64_t chunks = std::max<int64_t>(1, (N + most - 1) / most);
        return (N + chunks - 1) / chunks;
    }

    bool reserve(Arena &arena) {
        const int64_t threads = team(), n = at_a_time, of_e = (keeps ? blocks : 1) * n * LABELS;
        const int64_t packed_h = !d_hidden    ? 0
                                 : few_hidden ? threads * size_in_place<T>(H)
                                              : paired<P>(LABELS) * Hp;
        const int64_t sizes[] = {
            IS_ROUNDED<P> ? n * LABELS : of_e,  // logits
            n, blocks * n, n, n,                // largest, of_block, sums, of_target
            d_hidden ? n * Hp : 0,              // d_h
            threads * n, threads * n * H,       // scale, scaled_h
        };
        const int64_t of_products[] = {
            IS_ROUNDED<P> && (keeps || d_hidden) ? of_e : 0, IS_ROUNDED<P> ? n * paired<P>(H) : 0,
            few_logits ? 0 : paired<P>(H) * LABELS, few_logits ? 0 : paired<P>(H) * LABELS,
            packed_h, packed_h,
            d_weight ? threads * paired<P>(n) * Hp : 0,      // scaled
            d_weight ? threads * paired<P>(n) * LABELS : 0,  // slivers
        };
        T **places[] = {&logits, &largest, &of_block, &sums, &of_target, &d_h, &scale, &scaled_h};
        P **for_products[] = {&rounded_e, &rounded_h, &to_logits[0], &to_logits[1], &to_hidden[0],
                              &to_hidden[1], &scaled, &slivers};
        if (!arena.reserve(Arena::size_of(sizes, places) + Arena::size_of(of_products, for_products)))
            return false;
        arena.take(sizes, places);
        arena.take(of_products, for_products);
        return true;
    }

    void work(const Member &me) {
        if (N == 0) clear(me);
        for (int64_t first = 0; first < N; first += at_a_time) {
            const int64_t n = std::min(at_a_time, N - first);
            const Range rows = me.share(n, MOST_ROWS);
            begin(first, rows);
            for (int64_t block = 0; block < blocks; block++) {
                pack(me, n, block);
                if (!few_logits || !few_hidden) me.wait();
                if (rows.size() <= 0) continue;
                make_logits(n, first, rows, block);
                exponentials(n, first, rows, block);
                if (d_hidden) add_to_hidden(me, n, rows, block);
            }
            finish(first, rows);
            me.wait();  // the places of packed weights, and of e, are used by others
            if (!keeps) continue;
            const Range own = me.share(blocks);
            for (int64_t block = own.begin; block < own.end; block++) of_weight(me, first, n, block);
            me.wait();
        }
    }

    void clear(const Member &me) {
        const Range own = me.share(labels);
        if (d_weight) std::fill(d_weight + own.begin * H, d_weight + own.end * H, T(0));
        if (d_bias) std::fill(d_bias + own.begin, d_bias + own.end, T(0));
    }

    // ------------------------------------------------------------------ of some rows, all labels

    void begin(int64_t first, const Range &rows) {
        std::fill(largest + rows.begin, largest + rows.end, -std::numeric_limits<T>::infinity());
        std::fill(sums + rows.begin, sums + rows.end, T(0));
        if (IS_ROUNDED<P>)
            round_rows<P>(rows.size(), 0, H, H, hidden + (first + rows.begin) * H, H,
                          rounded_h + rows.begin * paired<P>(H), paired<P>(H));
    }

    Range labels_of(int64_t block) const {
        return {block * LABELS, std::min((block + 1) * LABELS, labels)};
    }
    // Where a row's e of a block are.
    int64_t place(int64_t n, int64_t row, int64_t block) const {
        return ((keeps ? block * n : 0) + row) * LABELS;
    }
    T *logits_at(int64_t n, int64_t row, int64_t block) const {
        return logits + (IS_ROUNDED<P> ? row * LABELS : place(n, row, block));
    }
    const P *e_at(int64_t n, int64_t row, int64_t block) const {
        if constexpr (IS_ROUNDED<P>) return rounded_e + place(n, row, block);
        else return logits + place(n, row, block);
    }

    Panels<P> logit_panels(int64_t n, int64_t block) const {
        return {to_logits[block % 2], H, labels_of(block).size(), widest_panel(n)};
    }
    Panels<P> hidden_panels(int64_t n, int64_t block) const {
        return {to_hidden[block % 2], labels_of(block).size(), H, widest_panel(n)};
    }

    // Each thread packs every so many-th panel.
    void pack(const Member &me, int64_t n, int64_t block) {
        const T *const w = weight + block * LABELS * H;
        int64_t number = 0;
        const auto is_own = [&] { return number++ % me.team == me.number; };
        if (!few_logits) {
            const Panels<P> b = logit_panels(n, block);
            b.walk([&](int64_t column, int wide, P *panel) {
                if (is_own()) pack_transposed_panel<P>(b, w, H, column, wide, panel);
            });
        }
        if (!d_hidden || few_hidden) return;
        const Panels<P> b = hidden_panels(n, block);
        b.walk([&](int64_t column, int wide, P *panel) {
            const int64_t width = std::min<int64_t>(wide * W, H - column);
            const auto row = [&](int64_t k) { return w + k * H; };
            if (is_own()) pack_panel<P>(b.depth, row, column, width, wide, panel);
        });
    }

    // W h of a block.
    void make_logits(int64_t n, int64_t first, const Range &rows, int64_t block) {
        T *const to = logits_at(n, rows.begin, block);
        const T *const h = hidden + (first + rows.begin) * H;
        if (few_logits) {
            multiply_transposed<T>(std::make_integer_sequence<int, 8>(), rows.size(), H, h, H,
                                   weight + block * LABELS * H, H, labels_of(block).size(), LABELS,
                                   to, LABELS, false);
            return;
        }
        Panels<P> whole = logit_panels(n, block);
        whole.columns = round_up<T>(whole.columns);
        Left<P> left{rounded_h + rows.begin * paired<P>(H), paired<P>(H)};
        if constexpr (!IS_ROUNDED<P>) left = {h, H};
        multiply<P>(rows.size(), H, left, whole, to, LABELS, false);
    }

    // The logits of a block become e, and are added up.
    void exponentials(int64_t n, int64_t first, const Range &rows, int64_t block) {
        const Range of = labels_of(block);
        for (int64_t i = rows.begin; i < rows.end; i++) {
            T *const l = logits_at(n, i, block);
            const T before = largest[i], most = add_bias(l, of, before);
            const int64_t target = q.targets[first + i];
            if (of.begin <= target && target < of.end) of_target[i] = l[target - of.begin];
            if (most > before && block > 0) shrink(i, smaller(before, most));
            largest[i] = of_block[block * at_a_time + i] = most;
            Vec sum{};
            for (int64_t j = 0; j < of.size(); j += W) {
                const Vec d = load(l + j) - most;
                const Vec e = d < Vector<T>::least ? Vec{} : exp_<T>(d);
                sum += e;
                if constexpr (!IS_ROUNDED<P>) store(l + j, e);
                else if (keeps || d_hidden)
                    Operand<P>::store_row(rounded_e + place(n, i, block) + j, e, W);
            }
            T total = 0;
            for (int k = 0; k < W; k++) total += sum[k];
            sums[i] += total;
        }
    }

    // Add the bias, and put the labels that there are not out of the way; returns the largest.
    T add_bias(T *l, const Range &of, T most) const {
        const int64_t n = of.size();
        Vec best = all<T>(most);
        for (int64_t i = n; i < round_up<T>(n); i++) l[i] = -std::numeric_limits<T>::infinity();
        for (int64_t j = 0; j < n; j += W) {
            Vec v = load(l + j);
            if (bias) v += load(bias + of.begin + j, n - j);
            store(l + j, v);
            best = v > best ? v : best;
        }
        T found = best[0];
        for (int i = 1; i < W; i++) found = best[i] > found ? best[i] : found;
        return found;
    }

    // e^(from - to), of two that were the largest.
    static T smaller(T from, T to) { return from < to ? exp_<T>(all<T>(from - to))[0] : T(1); }

    void shrink(int64_t i, T by) {
        sums[i] *= by;
        T *const d = d_h + i * Hp;
        for (int64_t u = 0; d_hidden && u < Hp; u += W) store(d + u, load(d + u) * by);
    }

    void add_to_hidden(const Member &me, int64_t n, const Range &rows, int64_t block) {
        const int64_t K = labels_of(block).size();
        const Left<P> left{e_at(n, rows.begin, block), LABELS};
        T *const to = d_h + rows.begin * Hp;
        if constexpr (!IS_ROUNDED<P>)
            if (few_hidden) {
                // What is read of the next row comes into columns that nobody looks at, but it must
                // be there.
                const bool more = (labels - block * LABELS - K) * H >= W;
                return multiply_in_place<T>(rows.size(), K, left, weight + block * LABELS * H, H,
                                            more ? Hp : H, to_hidden[0] + me.number * size_in_place<T>(H),
                                            to, Hp, block > 0, more);
            }
        Panels<P> whole = hidden_panels(n, block);
        whole.columns = Hp;
        multiply<P>(rows.size(), K, left, whole, to, Hp, block > 0);
    }

    // The losses, and d_h = (factor / Σ e) Σ e W, less the factor times the target's row of W.
    void finish(int64_t first, const Range &rows) {
        for (int64_t i = rows.begin; i < rows.end; i++) {
            losses[first + i] = std::log(sums[i]) + (largest[i] - of_target[i]);
            if (!d_hidden) continue;
            const T factor = factor_of(first + i), s = factor / sums[i];
            const T *const of_label = weight + q.targets[first + i] * H, *const from = d_h + i * Hp;
            T *const to = d_hidden + (first + i) * H;
            for (int64_t u = 0; u < H; u++) to[u] = s * from[u] - factor * of_label[u];
        }
    }

    T factor_of(int64_t row) const { return factors ? factors[row] : T(1); }

    // ------------------------------------------------------------------ of some labels, all rows

    // d_W = eᵀ (s h), less the factor times h in the target's row; d_b likewise.
    void of_weight(const Member &me, int64_t first, int64_t n, int64_t block) {
        const Range of = labels_of(block);
        T *const s = scale + me.number * at_a_time;
        for (int64_t i = 0; i < n; i++)
            s[i] = factor_of(first + i) / sums[i] *
                   smaller(of_block[block * at_a_time + i], largest[i]);
        if (d_weight) {
            const T *const of_rows = scale_states(me, first, n, s);
            P *const panels = scaled + me.number * paired<P>(at_a_time) * Hp;
            const Panels<P> hs{panels, n, H, widest_panel(MOST_ROWS)};
            pack_rows(hs, [&](int64_t i) { return of_rows + i * H; });
            P *const own = slivers + me.number * paired<P>(at_a_time) * LABELS;
            pack_slivers(of.size(), n, e_at(n, 0, block), LABELS, hs.widest, own);
            multiply<P>(of.size(), n, {own, 0}, hs, d_weight + of.begin * H, H, first > 0);
        }
        if (d_bias) of_bias(first, n, block, s);
        for (int64_t i = 0; i < n; i++) {
            const int64_t target = q.targets[first + i];
            if (target < of.begin || target >= of.end) continue;
            const T factor = factor_of(first + i);
            if (d_bias) d_bias[target] -= factor;
            if (d_weight)
                for (int64_t u = 0; u < H; u++)
                    d_weight[target * H + u] -= factor * hidden[(first + i) * H + u];
        }
    }

    const T *scale_states(const Member &me, int64_t first, int64_t n, const T *s) {
        T *const own = scaled_h + me.number * at_a_time * H;
        for (int64_t i = 0; i < n; i++)
            for (int64_t u = 0; u < H; u++) own[i * H + u] = hidden[(first + i) * H + u] * s[i];
        return own;
    }

    void of_bias(int64_t first, int64_t n, int64_t block, const T *s) {
        constexpr int64_t SOME = 5;  // vectors, of which a block is a multiple
        static_assert(LABELS % (SOME * W) == 0, "e has room for whole blocks");
        const Range of = labels_of(block);
        for (int64_t j = 0; j < of.size(); j += SOME * W) {
            const int64_t left = of.size() - j;
            T *const to = d_bias + of.begin + j;
            Vec sum[SOME];  // of labels that are not there, too
            for (int64_t v = 0; v < SOME; v++)
                sum[v] = first > 0 && v * W < left ? load(to + v * W, left - v * W) : Vec{};
            for (int64_t i = 0; i < n; i++) {
                const P *const e = e_at(n, i, block) + j;
#pragma GCC unroll 5
                for (int64_t v = 0; v < SOME; v++) sum[v] += s[i] * Operand<P>::numbers(e + v * W);
            }
            for (int64_t v = 0; v < SOME && v * W < left; v++) store(to + v * W, sum[v], left - v * W);
        }
    }
};

}  // namespace
