// A whole sequence of one layer, forward and backward. What each thread does for its own hidden
// units, and where all wait for each other: once a step, when h_t or the deltas are there.
#pragma once
#include "arena.h"
#include "cells.h"
#include "matrix.h"
#include "team.h"

namespace {

constexpr int64_t FORWARD_ROWS = 128;   // whose inputs are projected at a time
constexpr int64_t BACKWARD_ROWS = 512;  // whose deltas go into the weights' gradients at a time
constexpr int64_t SMALL_STEP = 12000; // multiplications of a step that are not worth a barrier

template <class T> int64_t padded(int64_t n) {  // the same on every path
    const int64_t whole = 64 / int64_t(sizeof(T));
    return (n + whole - 1) / whole * whole;
}

// Consecutive steps that are worked on together.
struct Chunk {
    int64_t begin, end;      // steps
    int64_t low, high;       // rows
};

// The steps in the order in which they are walked through.
struct Walk {
    const int64_t *sizes;
    int64_t steps;
    bool last_first;

    int64_t size(int64_t s) const { return sizes[last_first ? steps - 1 - s : s]; }

    // Call each(chunk) for chunks of about so many rows; first_row(s, row of it, size).
    template <class Each> void chunks(int64_t rows, int64_t all, Each each) const {
        int64_t row = last_first ? all : 0;
        for (int64_t begin = 0; begin < steps;) {
            int64_t end = begin, taken = 0;
            while (end < steps && (end == begin || taken + size(end) <= rows)) taken += size(end++);
            const Chunk chunk{begin, end, last_first ? row - taken : row,
                              last_first ? row : row + taken};
            each(chunk);
            row = last_first ? chunk.low : chunk.high;
            begin = end;
        }
    }

    // The first row of each step of a chunk, one after the other.
    template <class Each> void within(const Chunk &chunk, Each each) const {
        int64_t row = last_first ? chunk.high : chunk.low;
        for (int64_t s = chunk.begin; s < chunk.end; s++) {
            if (last_first) row -= size(s);
            each(s, row, size(s));
            if (!last_first) row += size(s);
        }
    }

    // The most rows that a chunk has.
    int64_t most_rows(int64_t rows) const {
        int64_t most = 0, all = 0;
        for (int64_t s = 0; s < steps; s++) all += sizes[s];
        chunks(rows, all, [&](const Chunk &c) { most = std::max(most, c.high - c.low); });
        return most;
    }
};

template <class T, class Cell> struct Sizes {
    const bptt_sequence &q;
    const int64_t B = q.batch, I = q.inputs, H = q.hidden, N = q.rows;
    static constexpr int64_t G = Cell::GATES;
    const int64_t Hp = padded<T>(H);

    explicit Sizes(const bptt_sequence &sequence) : q(sequence) {}
    // How many threads are worth it, with so many sequences side by side.
    int team(int64_t sequences) const {
        return sequences * H * G * H < SMALL_STEP ? 1 : int(q.threads);
    }
    bool is_dense() const { return q.sizes[q.steps - 1] == B; }
    template <class P> static P *at(const void *p) { return static_cast<P *>(const_cast<void *>(p)); }
};

// ------------------------------------------------------------------------------------ forward

template <class T, class Cell> struct Forward : Sizes<T, Cell> {
    using S = Sizes<T, Cell>;
    using S::B, S::G, S::H, S::Hp, S::I, S::N, S::q;

    const T *const x = S::template at<T>(q.x), *const h_0 = S::template at<T>(q.h_0);
    T *const y = S::template at<T>(q.y);
    const Walk walk{q.sizes, q.steps, q.reverse != 0};
    // Whether the rows of step t-1 are, as they are, those from which step t starts.
    const bool plain = !q.resets && (S::is_dense() || !q.reverse);
    const bool keeps = q.kept != nullptr;
    const int64_t chunk_rows = walk.most_rows(FORWARD_ROWS);
    T *gates, *extra, *bias, *c, *before[2], *of_x, *of_h;

    explicit Forward(const bptt_sequence &sequence) : S(sequence) {}

    int team() const { return S::team(B); }

    bool reserve(Arena &arena) {
        const bool own = Cell::KEEPS_GATES && !keeps;
        const int64_t sizes[] = {
            own ? chunk_rows * G * Hp : 0,          // gates
            own && Cell::HAS_Q ? chunk_rows * Hp : 0,  // extra
            4 * Hp,                                 // bias
            Cell::HAS_C ? B * Hp : 0,               // c
            plain ? 0 : B * H, plain ? 0 : B * H,   // before
            G * I * round_up<T>(H), G * H * round_up<T>(H),
        };
        T **places[] = {&gates, &extra, &bias, &c, &before[0], &before[1], &of_x, &of_h};
        int64_t bytes = 0;
        for (int64_t n : sizes) bytes += Arena::size_of<T>(n);
        if (!arena.reserve(bytes)) return false;
        for (int i = 0; i < 8; i++) *places[i] = arena.take<T>(sizes[i]);
        if (Cell::KEEPS_GATES && keeps) {
            gates = static_cast<T *>(q.kept);
            extra = gates + N * G * Hp;
        }
        return true;
    }

    // Where the gates of a row of a chunk lie, and how far apart rows and gates are.
    T *gate_row(const Chunk &chunk, int64_t row) const {
        if (!Cell::KEEPS_GATES) return y + row * H;
        return gates + (keeps ? row : row - chunk.low) * G * Hp;
    }
    int64_t row_apart() const { return Cell::KEEPS_GATES ? G * Hp : H; }
    T *extra_row(const Chunk &chunk, int64_t row) const {
        return extra + (keeps ? row : row - chunk.low) * Hp;
    }

    void work(const Member &me) {
        const Range units = me.share(H, WIDTH<T>);
        // Of the gates, which have room for whole vectors; of an Elman network's y, which has not.
        const int64_t columns = Cell::KEEPS_GATES ? round_up<T>(units.size()) : units.size();
        Panels<T> from_x[G], from_h[G];
        for (int g = 0; g < G; g++) {
            const int64_t place = units.begin * G + g * round_up<T>(units.size());
            from_x[g] = {of_x + place * I, I, units.size(), widest_panel(chunk_rows)};
            from_h[g] = {of_h + place * H, H, units.size(), widest_panel(B)};
            const int64_t first = g * H + units.begin;
            pack_transposed(from_x[g], S::template at<T>(q.w_ih) + first * I, I);
            pack_transposed(from_h[g], S::template at<T>(q.w_hh) + first * H, H);
            from_x[g].columns = from_h[g].columns = columns;
        }
        begin(me, units);
        walk.chunks(FORWARD_ROWS, N, [&](const Chunk &chunk) {
            T *to = gate_row(chunk, chunk.low) + units.begin;
            for (int g = 0; g < G; g++)
                multiply<T>(chunk.high - chunk.low, I, {x + chunk.low * I, I}, from_x[g],
                            to + g * Hp, row_apart(), false);
            walk.within(chunk, [&](int64_t s, int64_t row, int64_t n) {
                recur(chunk, s, row, n, units, from_h);
                me.wait();
            });
        });
        finish(units);
    }

    // Biases, and the state before the first step.
    void begin(const Member &me, const Range &units) {
        const T *b_ih = S::template at<T>(q.b_ih), *b_hh = S::template at<T>(q.b_hh);
        for (int64_t u = units.begin; u < units.begin + round_up<T>(units.size()); u++) {
            for (int g = 0; g < G; g++) {
                const bool apart = Cell::HAS_Q && g == 2;  // b_hh stays inside the reset gate
                const T of_x = b_ih && u < H ? b_ih[g * H + u] : T(0);
                const T of_h = b_hh && u < H ? b_hh[g * H + u] : T(0);
                bias[g * Hp + u] = apart ? of_x : of_x + of_h;
                if (apart) bias[3 * Hp + u] = of_h;
            }
            if (Cell::HAS_C)
                for (int64_t b = 0; b < B; b++)
                    c[b * Hp + u] = u < H ? S::template at<T>(q.c_0)[b * H + u] : T(0);
        }
        if (!plain) {
            set_before(0, nullptr, 0, walk.last_first ? N - walk.size(0) : 0, walk.size(0), units);
            me.wait();
        }
    }

    const T *state_before(int64_t s, int64_t row) const {
        if (!plain) return before[s % 2];
        if (s == 0) return h_0;
        return y + (row + (walk.last_first ? walk.size(s) : -walk.size(s - 1))) * H;
    }

    // The state before step s, where it is not the last one's: sequences that begin, and resets.
    void set_before(int64_t s, const T *last, int64_t running, int64_t row, int64_t n,
                    const Range &units) {
        for (int64_t b = 0; b < n; b++) {
            T *to = before[s % 2] + b * H;
            const T *from = b < running ? last + b * H : h_0 + b * H;
            if (q.resets && q.resets[row + b])
                std::fill(to + units.begin, to + units.end, T(0));
            else
                std::copy(from + units.begin, from + units.end, to + units.begin);
        }
    }

    void recur(const Chunk &chunk, int64_t s, int64_t row, int64_t n, const Range &units,
               const Panels<T> *from_h) {
        const T *h = state_before(s, row);
        T *gate = gate_row(chunk, row);
        for (int g = 0; g < G; g++) {
            const bool apart = Cell::HAS_Q && g == 2;
            T *to = apart ? extra_row(chunk, row) : gate + g * Hp;
            multiply<T>(n, H, {h, H}, from_h[g], to + units.begin, apart ? Hp : row_apart(),
                        !apart);
        }
        ForwardRow<T> r;
        for (int64_t b = 0; b < n; b++) {
            for (int g = 0; g < G; g++) r.gate[g] = gate + b * row_apart() + g * Hp;
            for (int g = 0; g < 4; g++) r.bias[g] = bias + g * Hp;
            r.h_before = h + b * H;
            r.c = c + b * Hp;
            r.c_before = q.resets && q.resets[row + b] ? nullptr : r.c;
            r.extra = Cell::HAS_Q || keeps ? extra_row(chunk, row + b) : nullptr;
            r.y = y + (row + b) * H;
            for (int64_t u = units.begin; u < units.end; u += WIDTH<T>) Cell::forward(r, u, H);
        }
        if (!plain && s + 1 < walk.steps) {
            const int64_t next = walk.size(s + 1), next_row = walk.last_first ? row - next : row + n;
            set_before(s + 1, y + row * H, n, next_row, next, units);
        }
    }

    // The final states: of each sequence's last step.
    void finish(const Range &units) {
        T *h_n = S::template at<T>(q.h_n), *c_n = S::template at<T>(q.c_n);
        int64_t row = 0;
        for (int64_t t = 0; t < q.steps; t++) {
            const int64_t n = q.sizes[t];
            const int64_t go_on = t + 1 < q.steps && !q.reverse ? q.sizes[t + 1] : 0;
            for (int64_t b = go_on; b < n; b++) {
                const T *from = y + (row + b) * H;
                std::copy(from + units.begin, from + units.end, h_n + b * H + units.begin);
            }
            if (q.reverse) break;  // all of them end at the first step
            row += n;
        }
        for (int64_t b = 0; Cell::HAS_C && b < B; b++)
            std::copy(c + b * Hp + units.begin, c + b * Hp + units.end, c_n + b * H + units.begin);
    }
};

// ----------------------------------------------------------------------------------- backward

template <class T, class Cell> struct Backward : Sizes<T, Cell> {
    using S = Sizes<T, Cell>;
    using S::B, S::G, S::H, S::Hp, S::I, S::N, S::q;
    static constexpr int64_t D = Cell::DELTAS;
    static constexpr int64_t OF_BOTH = Cell::HAS_Q ? 2 : G;  // gates whose deltas of x and h agree

    const bool windowed = q.walk_steps > 0;
    const Walk walk{windowed ? q.walk_sizes : q.sizes, windowed ? q.walk_steps : q.steps,
                    windowed ? false : q.reverse == 0};
    const int64_t W = windowed ? q.walk_sizes[0] : B;  // sequences of the walk
    const int64_t walk_rows = rows_of(walk);
    const int64_t chunk_rows = walk.most_rows(BACKWARD_ROWS);
    const int64_t most_rows = std::max(chunk_rows, windowed ? std::min(N, BACKWARD_ROWS) : 0);
    const int64_t blocks = round_up<T>(H) / WIDTH<T>;
    static constexpr int64_t STATES = Cell::HAS_C ? 2 : 1;
    const T *const y = S::template at<T>(q.y), *const x = S::template at<T>(q.x);
    const T *const gates = S::template at<T>(q.kept), *const extra = gates + N * G * Hp;
    const T *const d_y = S::template at<T>(q.d_y), *const carry = S::template at<T>(q.carry);
    T *const d_x = S::template at<T>(q.d_x), *const d_h = S::template at<T>(q.d_h);
    T *const d_c = S::template at<T>(q.d_c);
    T *const d_w_ih = S::template at<T>(q.d_w_ih), *const d_w_hh = S::template at<T>(q.d_w_hh);
    // Whether the windows' deltas of the same row are wanted together.
    const bool summed = windowed && (d_w_ih || d_w_hh || (d_x && !q.by_windows));

    // Of a chunk: deltas of h [rows, G*H], the GRU's of n [rows, H]; of all rows, where windows
    // are summed; what is packed.
    T *delta, *delta_n, *total, *total_n, *dh, *dc, *sums, *of_h, *of_x, *x_panels, *h_panels,
        *slivers;
    double *squares;      // of a chunk: sums over the rows of each step and unit, [steps, Hp],
    double *row_squares;  // and over a vector's units of each row, [rows, STATES, blocks]
    int64_t *previous;  // [N]: the row of the step before, or START - b, or NONE

    static constexpr int64_t NONE = -1, START = -2;

    explicit Backward(const bptt_sequence &sequence) : S(sequence) {}

    static int64_t rows_of(const Walk &walk) {
        int64_t n = 0;
        for (int64_t s = 0; s < walk.steps; s++) n += walk.sizes[s];
        return n;
    }

    int team() const { return S::team(W); }

    bool reserve(Arena &arena) {
        const bool weights = d_w_ih || d_w_hh;
        const int64_t sizes[] = {
            chunk_rows * G * H,                        // delta
            Cell::HAS_Q ? chunk_rows * H : 0,          // delta_n
            summed ? N * G * H : 0,                    // total
            summed && Cell::HAS_Q ? N * H : 0,         // total_n
            W * Hp, Cell::HAS_C ? W * Hp : 0,          // dh, dc
            4 * Hp,                                    // sums
            G * H * round_up<T>(H),                    // of_h
            d_x ? G * H * round_up<T>(I) : 0,          // of_x
            d_w_ih ? most_rows * round_up<T>(I) : 0,   // x_panels
            d_w_hh ? most_rows * round_up<T>(H) : 0,   // h_panels
            weights ? most_rows * G * H : 0,           // slivers
        };
        T **places[] = {&delta, &delta_n, &total, &total_n, &dh, &dc, &sums, &of_h, &of_x,
                        &x_panels, &h_panels, &slivers};
        const int64_t step_units = q.norms ? (walk.steps < chunk_rows ? walk.steps : chunk_rows) * Hp : 0;
        const int64_t row_blocks = q.row_norms ? chunk_rows * STATES * blocks : 0;
        int64_t bytes = Arena::size_of<double>(step_units) + Arena::size_of<double>(row_blocks) +
                        Arena::size_of<int64_t>(N);
        for (int64_t n : sizes) bytes += Arena::size_of<T>(n);
        if (!arena.reserve(bytes)) return false;
        for (int i = 0; i < 12; i++) *places[i] = arena.take<T>(sizes[i]);
        squares = arena.take<double>(step_units);
        row_squares = arena.take<double>(row_blocks);
        previous = arena.take<int64_t>(N);
        find_previous();
        return true;
    }

    void find_previous() {
        int64_t row = 0;
        for (int64_t t = 0; t < q.steps; t++) {
            const int64_t n = q.sizes[t];
            const int64_t later = t + 1 < q.steps ? q.sizes[t + 1] : 0;
            for (int64_t b = 0; b < n; b++) {
                int64_t from;
                if (q.resets && q.resets[row + b]) from = NONE;
                else if (q.reverse) from = b < later ? row + n + b : START - b;
                else from = t ? row - q.sizes[t - 1] + b : START - b;
                previous[row + b] = from;
            }
            row += n;
        }
    }

    // The state before a row's step, [H], or null where it was reset: in `states`, whose rows lie
    // so far apart, or in `first`.
    const T *before(int64_t row, const T *states, int64_t apart, const void *first) const {
        const int64_t from = previous[row];
        if (from == NONE) return nullptr;
        if (from <= START) return S::template at<T>(first) + (START - from) * H;
        return states + from * apart;
    }
    const T *h_before(int64_t row) const { return before(row, y, H, q.h_0); }

    void work(const Member &me) {
        const Range units = me.share(H, WIDTH<T>), inputs = me.share(I, WIDTH<T>);
        const Panels<T> to_h{of_h + units.begin * G * H, G * H, units.size(), widest_panel(W)};
        const Panels<T> to_x{of_x + inputs.begin * G * H, G * H, inputs.size(),
                             widest_panel(most_rows)};
        pack_rows(to_h, [&](int64_t k) { return S::template at<T>(q.w_hh) + k * H + units.begin; });
        if (d_x)
            pack_rows(to_x,
                      [&](int64_t k) { return S::template at<T>(q.w_ih) + k * I + inputs.begin; });
        begin(units);
        bool first = true;
        walk.chunks(BACKWARD_ROWS, walk_rows, [&](const Chunk &chunk) {
            recur(me, chunk, units, to_h);
            if (q.norms) report(me, chunk);
            if (q.row_norms) report_rows(me, chunk);
            const int64_t n = chunk.high - chunk.low;
            if (d_x && (!windowed || q.by_windows))
                of_inputs(delta, delta_n, chunk.low, n, inputs, to_x);
            if (!windowed) of_weights(me, delta, delta_n, chunk.low, n, first);
            first = false;
            me.wait();  // the deltas' place is used again
        });
        if (summed)
            for (int64_t low = 0; low < N; low += BACKWARD_ROWS) {
                const int64_t n = std::min(BACKWARD_ROWS, N - low);
                T *const of_h = total + low * G * H, *const of_n = total_n + low * H;
                if (d_x && !q.by_windows) of_inputs(of_h, of_n, low, n, inputs, to_x);
                of_weights(me, of_h, of_n, low, n, low == 0);
                me.wait();
            }
        finish(units);
    }

    void begin(const Range &units) {
        const int64_t end = units.begin + round_up<T>(units.size());
        for (int64_t w = 0; w < W; w++)
            for (int64_t u = units.begin; u < end; u++) {
                dh[w * Hp + u] = d_h && u < H ? d_h[w * H + u] : T(0);
                if (Cell::HAS_C) dc[w * Hp + u] = d_c && u < H ? d_c[w * H + u] : T(0);
            }
        for (int g = 0; g < 4; g++) std::fill(sums + g * Hp + units.begin, sums + g * Hp + end, T(0));
        for (int64_t row = 0; summed && row < N; row++) {
            for (int g = 0; g < G; g++) {
                T *to = total + (row * G + g) * H;
                std::fill(to + units.begin, to + units.end, T(0));
            }
            if (Cell::HAS_Q)
                std::fill(total_n + row * H + units.begin, total_n + row * H + units.end, T(0));
        }
    }

    // The deltas of a chunk of steps, and the state's gradient before it.
    void recur(const Member &me, const Chunk &chunk, const Range &units, const Panels<T> &to_h) {
        const Panels<T> whole{to_h.data, to_h.depth, round_up<T>(units.size()), to_h.widest};
        walk.within(chunk, [&](int64_t s, int64_t low, int64_t n) {
            for (int64_t b = 0; b < n; b++) step(chunk, s, low + b, b, units);
            me.wait();
            multiply<T>(n, G * H, {delta + (low - chunk.low) * G * H, G * H}, whole,
                        dh + units.begin, Hp, Cell::HAS_Q);
            if (carry || q.resets)
                for (int64_t b = 0; b < n; b++) cross(low + b, b, units);
        });
    }

    int64_t source(int64_t row) const { return windowed ? q.window_rows[row] : row; }

    void step(const Chunk &chunk, int64_t s, int64_t row, int64_t b, const Range &units) {
        const int64_t from = source(row);
        BackwardRow<T> r;
        for (int g = 0; g < G; g++) r.gate[g] = gates + (from * G + g) * Hp;
        r.extra = extra + from * Hp;
        r.y = y + from * H;
        r.h_before = Cell::HAS_Q ? h_before(from) : nullptr;
        r.c_before = Cell::HAS_C ? before(from, extra, Hp, q.c_0) : nullptr;
        r.dh = dh + b * Hp;
        r.dc = dc + b * Hp;
        for (int g = 0; g < G; g++) r.delta[g] = delta + ((row - chunk.low) * G + g) * H;
        if (Cell::HAS_Q) r.delta[3] = delta_n + (row - chunk.low) * H;
        for (int g = 0; g < 4; g++) r.sum[g] = sums + g * Hp;
        if (q.row_norms) square(r, row - chunk.low, units);
        if (d_y)
            for (int64_t u = units.begin; u < units.end; u += WIDTH<T>)
                store(r.dh + u, load(r.dh + u) + load(d_y + row * H + u, H - u));
        if (q.norms) {
            double *sum = squares + (s - chunk.begin) * Hp;
            for (int64_t u = units.begin; u < units.end; u++) {
                const double d = r.dh[u];
                sum[u] = b ? sum[u] + d * d : d * d;
            }
        }
        for (int64_t u = units.begin; u < units.end; u += WIDTH<T>) Cell::backward(r, u, H);
        if (summed) add_to_total(r, from, units);
    }

    // Of the state's gradient, vector by vector: whole vectors belong to one thread.
    void square(const BackwardRow<T> &r, int64_t row, const Range &units) {
        for (int64_t state = 0; state < STATES; state++) {
            const T *const d = state ? r.dc : r.dh;
            double *const sum = row_squares + (row * STATES + state) * blocks;
            for (int64_t u = units.begin; u < units.end; u += WIDTH<T>) {
                double block = 0;
                for (int64_t v = u; v < std::min<int64_t>(u + WIDTH<T>, units.end); v++)
                    block += double(d[v]) * double(d[v]);
                sum[u / WIDTH<T>] = block;
            }
        }
    }

    void add_to_total(const BackwardRow<T> &r, int64_t from, const Range &units) {
        for (int d = 0; d < D; d++) {
            T *to = d < G ? total + (from * G + d) * H : total_n + from * H;
            for (int64_t u = units.begin; u < units.end; u += WIDTH<T>)
                store(to + u, load(to + u, H - u) + load(r.delta[d] + u, H - u), H - u);
        }
    }

    // What of the state's gradient passes from a row's step to the one before.
    void cross(int64_t row, int64_t b, const Range &units) {
        const int64_t from = source(row);
        const T factor = q.resets && q.resets[from] ? T(0) : carry ? carry[from] : T(1);
        for (T *d : {dh + b * Hp, Cell::HAS_C ? dc + b * Hp : nullptr})
            for (int64_t u = units.begin; d && u < units.end; u += WIDTH<T>)
                store(d + u, factor == T(0) ? V<T>{} : load(d + u) * factor);
    }

    // ‖∂L/∂h_t‖ of the steps of a chunk, summed over the units in order.
    void report(const Member &me, const Chunk &chunk) {
        const Range steps = me.share(chunk.end - chunk.begin);
        for (int64_t s = steps.begin; s < steps.end; s++) {
            double sum = 0;
            for (int64_t u = 0; u < H; u++) sum += squares[s * Hp + u];
            q.norms[chunk.begin + s] = __builtin_sqrt(sum);
        }
    }

    void report_rows(const Member &me, const Chunk &chunk) {
        const int64_t first = chunk.low * STATES;
        const Range rows = me.share(chunk.high * STATES - first);
        for (int64_t n = rows.begin; n < rows.end; n++) {
            double sum = 0;
            for (int64_t block = 0; block < blocks; block++) sum += row_squares[n * blocks + block];
            q.row_norms[first + n] = __builtin_sqrt(sum);
        }
    }

    // d_x = delta W_ih
    void of_inputs(const T *deltas, const T *deltas_n, int64_t low, int64_t n, const Range &inputs,
                   const Panels<T> &to_x) {
        T *to = d_x + low * I + inputs.begin;
        multiply<T>(n, OF_BOTH * H, {deltas, G * H}, to_x, to, I, false);
        if (Cell::HAS_Q) multiply<T>(n, H, {deltas_n, H}, to_x, to, I, true, 2 * H);
    }

    // d_W += deltaᵀ [x, h_before], over n rows
    void of_weights(const Member &me, const T *deltas, const T *deltas_n, int64_t low, int64_t n,
                    bool first) {
        if (!d_w_ih && !d_w_hh) return;
        const Panels<T> xs{x_panels, n, I, widest_panel(MOST_ROWS)};
        const Panels<T> hs{h_panels, n, H, widest_panel(MOST_ROWS)};
        if (d_w_ih) pack_share(me, xs, [&](int64_t k) { return x + (low + k) * I; });
        if (d_w_hh) pack_share(me, hs, [&](int64_t k) { return h_before(low + k); });
        me.wait();
        const Range own = me.share(G * H, MOST_ROWS);
        const Range both{own.begin, std::min(own.end, OF_BOTH * H)};
        const Range apart{std::max(own.begin, OF_BOTH * H), own.end};
        T *packed = slivers + own.begin * n;
        if (both.size() > 0) {
            pack_slivers(both.size(), n, deltas + both.begin, G * H, xs.widest, packed);
            if (d_w_ih)
                multiply<T>(both.size(), n, {packed, 0}, xs, d_w_ih + both.begin * I, I, !first);
            if (d_w_hh)
                multiply<T>(both.size(), n, {packed, 0}, hs, d_w_hh + both.begin * H, H, !first);
        }
        if (apart.size() <= 0) return;
        if (d_w_ih) {
            pack_slivers(apart.size(), n, deltas_n + apart.begin - 2 * H, H, xs.widest, packed);
            multiply<T>(apart.size(), n, {packed, 0}, xs, d_w_ih + apart.begin * I, I, !first);
        }
        if (d_w_hh) {
            pack_slivers(apart.size(), n, deltas + apart.begin, G * H, hs.widest, packed);
            multiply<T>(apart.size(), n, {packed, 0}, hs, d_w_hh + apart.begin * H, H, !first);
        }
    }

    // Each thread packs every so many-th panel.
    template <class Row> void pack_share(const Member &me, const Panels<T> &b, Row row) {
        int64_t number = 0;
        b.walk([&](int64_t column, int wide, T *panel) {
            if (number++ % me.team != me.number) return;
            const int64_t width = std::min<int64_t>(wide * WIDTH<T>, b.columns - column);
            pack_panel<T>(b.depth, row, column, width, wide, panel);
        });
    }

    void finish(const Range &units) {
        for (int64_t w = 0; d_h && w < W; w++) {
            std::copy(dh + w * Hp + units.begin, dh + w * Hp + units.end, d_h + w * H + units.begin);
            if (Cell::HAS_C)
                std::copy(dc + w * Hp + units.begin, dc + w * Hp + units.end,
                          d_c + w * H + units.begin);
        }
        T *b_ih = S::template at<T>(q.d_b_ih), *b_hh = S::template at<T>(q.d_b_hh);
        for (int g = 0; g < G; g++) {
            const T *of_h = sums + g * Hp, *of_x = Cell::HAS_Q && g == 2 ? sums + 3 * Hp : of_h;
            if (b_ih) std::copy(of_x + units.begin, of_x + units.end, b_ih + g * H + units.begin);
            if (b_hh) std::copy(of_h + units.begin, of_h + units.end, b_hh + g * H + units.begin);
        }
    }
};

}  // namespace
