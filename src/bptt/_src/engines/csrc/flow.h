// One step of one layer, and many losses on their way back through it side by side. Compare with
// the twin, bptt/_src/flow/step_matrix.py.
//
// What the step does to a gradient is linear, and the same for all losses of a sequence, so its
// matrix is made first, the blocks' products summed, as panels for the product with all of them: K
// rows, which stand for ∂L/∂c, if there is a second state, and for ∂L/∂m: m is h, or what is
// projected to it.
#pragma once
#include <limits>

#include "arena.h"
#include "matrix.h"
#include "team.h"

namespace {

constexpr int64_t SMALL_FLOW = 100000;  // multiplications that are not worth a second thread
constexpr int64_t MADE_ROWS = 16;       // of a matrix at a time: W's rows stay in the first cache

typedef float HalfOfFloats __attribute__((vector_size(BPTT_BYTES / 2)));

inline V<double> doubles(const double *p) { return load(p); }
inline V<double> doubles(const float *p) {
    HalfOfFloats v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, V<double>);
}

// ‖x‖, summed in double.
template <class T> double norm(const T *x, int64_t n) {
    constexpr int W = WIDTH<double>;
    V<double> low{}, high{};
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const V<double> a = doubles(x + i), b = doubles(x + i + W);
        low += a * a;
        high += b * b;
    }
    double sum = 0;
    for (; i < n; i++) sum += double(x[i]) * double(x[i]);
    low += high;
    for (int k = 0; k < W; k++) sum += low[k];
    return __builtin_sqrt(sum);
}

constexpr int MOST_TERMS = 4;  // of a row that are added at a time

template <class T> struct FlowStep {
    const bptt_flow_step &q;
    const int64_t S = q.sequences, D = q.losses, I = q.inputs, H = q.hidden, P = q.outputs;
    const bool has_c = q.states == 2;
    const int64_t K = q.states * H, row = K + WIDTH<T>;
    const T *const c_to_m = static_cast<const T *>(q.c_to_m);
    const T *const h_to_m = static_cast<const T *>(q.h_to_m);
    const T *const c_to_c = static_cast<const T *>(q.c_to_c);
    const T *const h_to_c = static_cast<const T *>(q.h_to_c);
    const T *const c_before_to_m = static_cast<const T *>(q.c_before_to_m);
    const T *const d_m = static_cast<const T *>(q.d_m);
    T *const d_h = static_cast<T *>(q.d_h), *const d_c = static_cast<T *>(q.d_c);
    T *const d_x = static_cast<T *>(q.d_x);
    const int64_t blocks = std::min(D, BLOCK_ROWS);
    const int64_t of_h_size = K * round_up<T>(P), of_x_size = d_x ? K * round_up<T>(I) : 0;
    T *of_h, *of_x, *of_credit, *left;  // of_h, of_x, of_credit: of each sequence of a group

    explicit FlowStep(const bptt_flow_step &step) : q(step) {}

    int team() const { return S * D * K * (P + (d_x ? I : 0)) < SMALL_FLOW ? 1 : int(q.threads); }

    bool reserve(Arena &arena) {
        const int64_t group = team();
        const int64_t sizes[] = {group * of_h_size, group * of_x_size, q.credit ? group * K : 0,
                                 group * blocks * row};
        T **places[] = {&of_h, &of_x, &of_credit, &left};
        if (!arena.reserve(Arena::size_of(sizes, places))) return false;
        arena.take(sizes, places);
        return true;
    }

    // As many sequences at a time as there are threads: where they divide evenly, a thread makes the
    // matrix that it uses.
    void work(const Member &me) {
        for (int64_t first = 0; first < S; first += me.team) {
            const int64_t group = std::min<int64_t>(me.team, S - first);
            each_part(me.share(group * K), K, [&](int64_t b, Range rows) { make(b, first + b, rows); });
            me.wait();
            each_part(me.share(group * D), D, [&](int64_t b, Range losses) {
                for (int64_t i = losses.begin; i < losses.end; i += blocks)
                    pass(me, b, first + b, {i, std::min(i + blocks, losses.end)});
            });
            me.wait();  // the matrices' place is used again
        }
    }

    // Call each(which, range within it) for a range that goes over several things of so many.
    template <class Each> static void each_part(Range range, int64_t size, Each each) {
        for (int64_t at = range.begin; at < range.end;) {
            const int64_t which = at / size, end = std::min(range.end, (which + 1) * size);
            each(which, Range{at - which * size, end - which * size});
            at = end;
        }
    }

    // ------------------------------------------------------------------------------- matrices

    Panels<T> panels(T *data, int64_t columns) const { return {data, K, columns, widest_panel(D)}; }

    static int64_t size(const bptt_terms &of) { return of.of_c + of.of_m; }

    const T *values(const bptt_terms &of, int64_t b) const {
        return static_cast<const T *>(of.values) + b * size(of) * H;
    }

    // The terms of one of the matrix's rows.
    Range terms(const bptt_terms &of, int64_t k) const {
        const bool is_of_c = has_c && k < H;
        return {is_of_c ? 0 : of.of_c, is_of_c ? of.of_c : size(of)};
    }

    // Some rows of what a sequence's step does.
    void make(int64_t place, int64_t b, Range rows) {
        make_panels(panels(of_h + place * of_h_size, P), q.of_hidden, b, q.w_hh, rows);
        if (d_x) make_panels(panels(of_x + place * of_x_size, I), q.of_input, b, q.w_ih, rows);
        if (!q.credit) return;
        const T *const local = values(q.of_input, b);
        const T *const projected = static_cast<const T *>(q.projected) + b * q.blocks_x * H;
        for (int64_t k = rows.begin; k < rows.end; k++) {
            const Range own = terms(q.of_input, k);
            T sum = 0;
            for (int64_t r = own.begin; r < own.end; r++)
                sum += local[r * H + k % H] * projected[q.of_input.blocks[r] * H + k % H];
            of_credit[place * K + k] = sum;
        }
    }

    // Σ over the terms of diag(local derivative) W.
    void make_panels(const Panels<T> &to, const bptt_terms &of, int64_t b, const void *weight,
                     Range rows) {
        const T *const w = static_cast<const T *>(weight);
        for (int64_t low = rows.begin; low < rows.end; low += MADE_ROWS) {
            const int64_t high = std::min(low + MADE_ROWS, rows.end);
            to.walk([&](int64_t column, int wide, T *panel) {
                for (int64_t k = low; k < high;) {  // the rows of the same terms
                    const Range own = terms(of, k);
                    const int64_t end = has_c && k < H ? std::min(H, high) : high;
                    const Rows some{k, end, wide, to.columns, column, panel};
                    if (own.size() == 0) some.clear();
                    for (int64_t r = own.begin; r < own.end; r += MOST_TERMS) {
                        const T *const local = values(of, b) + r * H;
                        const int64_t *const blocks = of.blocks + r, left = own.end - r;
                        const bool adds = r > own.begin;
                        if (left == 1) make_rows<1>(some, local, blocks, w, adds);
                        else if (left == 2) make_rows<2>(some, local, blocks, w, adds);
                        else if (left == 3) make_rows<3>(some, local, blocks, w, adds);
                        else make_rows<MOST_TERMS>(some, local, blocks, w, adds);
                    }
                    k = end;
                }
            });
        }
    }

    // Some rows of a panel.
    struct Rows {
        int64_t begin, end;
        int wide;
        int64_t columns, column;
        T *panel;

        T *at(int64_t k) const { return panel + k * wide * WIDTH<T>; }
        void clear() const { std::fill(at(begin), at(end), T(0)); }
    };

    template <int N>
    void make_rows(const Rows &of, const T *local, const int64_t *blocks, const T *w,
                   bool adds) const {
        const int64_t hidden = H, columns = of.columns, width = columns - of.column;
        const int wide = of.wide;
        const T *from[N];
        for (int i = 0; i < N; i++) from[i] = w + blocks[i] * hidden * columns + of.column;
        for (int64_t k = of.begin; k < of.end; k++) {
            const int64_t unit = k < hidden ? k : k - hidden;
            T *const to = of.at(k);
            for (int v = 0; v < wide; v++) {
                const int64_t at = v * WIDTH<T>, place = unit * columns + at;
                V<T> sum = local[unit] * load(from[0] + place, width - at);
                for (int i = 1; i < N; i++)
                    sum += local[i * hidden + unit] * load(from[i] + place, width - at);
                store(to + at, adds ? sum + load(to + at) : sum);
            }
        }
    }

    // --------------------------------------------------------------------------------- losses

    // Take some losses of a sequence through the step.
    void pass(const Member &me, int64_t place, int64_t b, Range losses) {
        T *const a = left + me.number * blocks * row;
        T *const h = d_h + (b * q.stride + losses.begin) * P;
        for (int64_t i = losses.begin; i < losses.end; i++) fill(b, i, a + (i - losses.begin) * row);
        // What passes to ∂L/∂h by no weight is there, to be added to.
        multiply<T>(losses.size(), K, {a, row}, panels(of_h + place * of_h_size, P), h, P,
                    h_to_m || h_to_c);
        if (d_x)
            multiply<T>(losses.size(), K, {a, row}, panels(of_x + place * of_x_size, I),
                        d_x + (b * D + losses.begin) * I, I, false);
        for (int64_t i = losses.begin; i < losses.end; i++) {
            const int64_t at = b * q.stride + i;
            if (q.credit)
                q.credit[at] = dot(a + (i - losses.begin) * row, of_credit + place * K);
            finish(b, at);
        }
    }

    // A row of the product's left side; of the state's gradients stays what passes by no weight.
    void fill(int64_t b, int64_t i, T *to) const {
        T *const h = d_h + (b * q.stride + i) * P, *const c = d_c + (b * q.stride + i) * H;
        const T *const m = d_m ? d_m + (b * D + i) * H : h;
        const int64_t hidden = H;
        const auto of = [&](const T *diagonal) { return diagonal ? diagonal + b * hidden : nullptr; };
        const T *const h_m = of(h_to_m), *const h_c = of(h_to_c), *const c_c = of(c_to_c);
        const T *const c_m = of(c_before_to_m), *const m_c = of(c_to_m);
        if (!has_c) {
            for (int64_t u = 0; u < hidden; u += WIDTH<T>) {
                const V<T> of_m = load(m + u, hidden - u);
                store(to + u, of_m, hidden - u);
                if (h_m) store(h + u, of_m * load(h_m + u, hidden - u), hidden - u);
            }
            return;
        }
        for (int64_t u = 0; u < hidden; u += WIDTH<T>) {
            const int64_t n = hidden - u;
            const V<T> of_m = load(m + u, n);
            V<T> of_c = load(c + u, n), left{};
            if (m_c) of_c += of_m * load(m_c + u, n);
            store(to + u, of_c, n);
            store(to + hidden + u, of_m, n);
            if (c_c) left = of_c * load(c_c + u, n);
            if (c_m) left += of_m * load(c_m + u, n);
            store(c + u, left, n);
            if (!h_m && !h_c) continue;
            left = V<T>{};
            if (h_m) left = of_m * load(h_m + u, n);
            if (h_c) left += of_c * load(h_c + u, n);
            store(h + u, left, n);
        }
    }

    double dot(const T *a, const T *with) const {
        V<T> sum{};
        for (int64_t k = 0; k < K; k += WIDTH<T>) sum += load(a + k, K - k) * load(with + k, K - k);
        double found = 0;
        for (int i = 0; i < WIDTH<T>; i++) found += sum[i];
        return found;
    }

    // The norms of what is handed down. What is about to be nothing ends: numbers that are next to
    // the smallest that there are have few digits and are slow, as are their squares.
    void finish(int64_t b, int64_t at) const {
        constexpr double least = std::max(100 * double(std::numeric_limits<T>::min()), 1e-150);
        T *const h = d_h + at * P, *const c = d_c ? d_c + at * H : nullptr;
        const bool ends = q.resets && q.resets[b];
        const double of_h = ends ? 0 : norm(h, P), of_c = ends || !c ? 0 : norm(c, H);
        q.norms_h[at] = of_h;
        if (c) q.norms_c[at] = of_c;
        if (of_h < least && of_c < least) {
            std::fill(h, h + P, T(0));
            if (c) std::fill(c, c + H, T(0));
        }
    }
};

}  // namespace
