// One step of one layer, and many losses on their way back through it side by side. Compare with
// the twin, bptt/_src/flow/step_matrix.py.
//
// What the step does to a gradient is linear, and the same for all losses of a sequence, so its
// matrix is made first, the gates' products summed, as panels for the product with all of them: K
// rows, which stand for ∂L/∂h, or for the LSTM's ∂L/∂c and ∂L/∂m.
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

template <class T> struct FlowStep {
    const bptt_flow_step &q;
    const int64_t S = q.sequences, D = q.losses, I = q.inputs, H = q.hidden, P = q.outputs, G = q.gates;
    const int64_t K = q.through ? 2 * H : H, row = K + WIDTH<T>;
    const T *const through = static_cast<const T *>(q.through);
    const T *const kept = static_cast<const T *>(q.kept);
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
        int64_t bytes = 0;
        for (int64_t n : sizes) bytes += Arena::size_of<T>(n);
        if (!arena.reserve(bytes)) return false;
        for (int i = 0; i < 4; i++) *places[i] = arena.take<T>(sizes[i]);
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

    // Some rows of what a sequence's step does.
    void make(int64_t place, int64_t b, Range rows) {
        const T *const of_hidden = static_cast<const T *>(q.of_hidden) + b * G * H;
        const T *const of_input = static_cast<const T *>(q.of_input) + b * G * H;
        make_panels(panels(of_h + place * of_h_size, P), of_hidden, q.w_hh, rows);
        if (d_x) make_panels(panels(of_x + place * of_x_size, I), of_input, q.w_ih, rows);
        if (!q.credit) return;
        const T *const projected = static_cast<const T *>(q.projected) + b * G * H;
        for (int64_t k = rows.begin; k < rows.end; k++) {
            T sum = 0;
            for (int64_t g = first_gate(k); g < end_gate(k); g++)
                sum += of_input[g * H + k % H] * projected[g * H + k % H];
            of_credit[place * K + k] = sum;
        }
    }

    // The LSTM's gates i, f and g are of ∂L/∂c, o is of ∂L/∂m.
    int64_t first_gate(int64_t k) const { return k < H ? 0 : 3; }
    int64_t end_gate(int64_t k) const { return through && k < H ? 3 : G; }

    // Σ over the gates of diag(local derivative) W.
    void make_panels(const Panels<T> &to, const T *local, const void *weight, Range rows) {
        const T *const w = static_cast<const T *>(weight);
        for (int64_t low = rows.begin; low < rows.end; low += MADE_ROWS) {
            const int64_t high = std::min(low + MADE_ROWS, rows.end);
            to.walk([&](int64_t column, int wide, T *panel) {
                for (int64_t k = low; k < high; k++) {
                    const int64_t at = first_gate(k) * H + k % H;
                    const T *const from = w + at * to.columns + column;
                    T *const made = panel + k * wide * WIDTH<T>;
                    const int64_t width = to.columns - column;
                    if (end_gate(k) - first_gate(k) == 3)
                        make_row<3>(wide, width, local + at, from, H * to.columns, made);
                    else make_row<1>(wide, width, local + at, from, H * to.columns, made);
                }
            });
        }
    }

    template <int GATES>
    void make_row(int wide, int64_t width, const T *local, const T *w, int64_t apart, T *to) const {
        for (int v = 0; v < wide; v++) {
            const int64_t at = v * WIDTH<T>;
            V<T> sum = local[0] * load(w + at, width - at);
            for (int g = 1; g < GATES; g++)
                sum += local[g * H] * load(w + g * apart + at, width - at);
            store(to + at, sum);
        }
    }

    // --------------------------------------------------------------------------------- losses

    // Take some losses of a sequence through the step.
    void pass(const Member &me, int64_t place, int64_t b, Range losses) {
        T *const a = left + me.number * blocks * row;
        T *const h = d_h + (b * q.apart + losses.begin) * P;
        for (int64_t i = losses.begin; i < losses.end; i++) fill(b, i, a + (i - losses.begin) * row);
        // What the GRU keeps of ∂L/∂h is still there, to be added to.
        multiply<T>(losses.size(), K, {a, row}, panels(of_h + place * of_h_size, P), h, P,
                    kept && !through);
        if (d_x)
            multiply<T>(losses.size(), K, {a, row}, panels(of_x + place * of_x_size, I),
                        d_x + (b * D + losses.begin) * I, I, false);
        for (int64_t i = losses.begin; i < losses.end; i++) {
            const int64_t at = b * q.apart + i;
            if (q.credit)
                q.credit[at] = dot(a + (i - losses.begin) * row, of_credit + place * K);
            finish(b, at);
        }
    }

    // A row of the product's left side; of the state's gradients stays what the step keeps of them.
    void fill(int64_t b, int64_t i, T *to) const {
        T *const h = d_h + (b * q.apart + i) * P;
        const T *const keep = kept ? kept + b * H : nullptr;
        if (through) {
            T *const c = d_c + (b * q.apart + i) * H;
            const T *const m = d_m ? d_m + (b * D + i) * H : h, *const of_m = through + b * H;
            for (int64_t u = 0; u < H; u += WIDTH<T>) {
                const int64_t n = H - u;
                const V<T> d = load(c + u, n) + load(m + u, n) * load(of_m + u, n);
                store(to + u, d, n);
                store(to + H + u, load(m + u, n), n);
                store(c + u, d * load(keep + u, n), n);
            }
            return;
        }
        for (int64_t u = 0; u < H; u += WIDTH<T>) {
            const V<T> d = load(h + u, H - u);
            store(to + u, d, H - u);
            if (keep) store(h + u, d * load(keep + u, H - u), H - u);
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
