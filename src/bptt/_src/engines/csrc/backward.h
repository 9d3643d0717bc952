// A whole sequence of one layer, backward. What each thread does for its own hidden units, and
// where all wait for each other: once a step, when the gates' gradients are there, and where there
// is a projection, when those of h are.
#pragma once
#include "row_norms.h"
#include "sequence.h"

namespace {

template <class P, class Cell> struct Backward : Sizes<P, Cell> {
    using S = Sizes<P, Cell>;
    using typename S::T;
    using S::A, S::B, S::G, S::H, S::Hp, S::I, S::JOINT, S::N, S::O, S::projects, S::q, S::STATES,
        S::U;

    const bool windowed = q.walk_steps > 0;
    const Walk walk{windowed ? q.walk_sizes : q.sizes, windowed ? q.walk_steps : q.steps,
                    windowed ? false : q.reverse == 0};
    const int64_t W = windowed ? q.walk_sizes[0] : B;  // sequences of the walk
    const int64_t walk_rows = walk.all();
    const int64_t chunk_rows = walk.most_rows(BACKWARD_ROWS);
    const int64_t most_rows = std::max(chunk_rows, windowed ? std::min(N, BACKWARD_ROWS) : 0);
    const int64_t Op = padded<T>(O), row_of_states = std::max(Hp, Op);
    const T *const y = S::at(q.y), *const x = S::at(q.x);
    const T *const gates = S::at(q.kept);
    const T *const kept_apart = gates + N * G * Hp;
    const T *const kept_m = kept_apart + A * N * Hp;
    const T *const kept_states = kept_m + (projects ? N * Hp : 0);
    const T *const carry = S::at(q.carry);
    T *const d_x = S::at(q.d_x), *const d_h = S::at(q.d_state[0]);
    T *const d_w_ih = S::at(q.d_w_ih), *const d_w_hh = S::at(q.d_w_hh);
    T *const d_w_hr = S::at(q.d_w_hr);
    // Whether the windows' deltas of the same row are wanted together.
    const bool summed = windowed && (d_w_ih || d_w_hh || (d_x && !q.by_windows));
    // Whether weights are read where they are: packed, they would hardly be used again.
    const bool few = !IS_ROUNDED<P> && walk_rows <= FEW;

    // Of a chunk: deltas, the gradients of W_hh h, [rows, GH], and those of W_ih x where they are
    // others, [rows, AH].
    P *delta, *delta_x;
    P *d_outputs;  // the gradients of h, where it is projected, [rows, OP], and
    T *d_m;        // of a step's m, [W, Hp]
    T *total, *total_x;  // the sums over the windows, of all rows
    T *states;  // gradients, [STATES, W, row_of_states]
    T *sums;    // over all rows, [G + A + U, Hp]: of the deltas, and of the gradients of the units
    P *of_h, *of_x, *of_m, *x_panels, *h_panels, *m_panels, *slivers;  // what is packed
    const int64_t GH = paired<P>(G * H), AH = paired<P>(A * H), JH = paired<P>(JOINT * H);
    const int64_t OP = paired<P>(O);
    RowNorms<T, STATES> norms;  // of a chunk's rows
    int64_t *previous;  // [N]: the row of the step before, or START - b, or NONE

    static constexpr int64_t NONE = -1, START = -2;

    explicit Backward(const bptt_sequence &sequence) : S(sequence) {}

    int team() const { return S::team(W); }

    bool reserve(Arena &arena) {
        const bool weights = d_w_ih || d_w_hh;
        const int64_t sizes[] = {
            summed ? N * GH : 0,   // total
            summed ? N * AH : 0,   // total_x
            STATES * W * row_of_states,  // states
            (G + A + U) * Hp,      // sums
            projects ? W * Hp : 0,  // d_m
        };
        const int64_t rows = paired<P>(most_rows), threads = team();
        const int64_t of_products[] = {
            most_rows * GH,                          // delta
            most_rows * AH,                          // delta_x
            few ? threads * size_in_place<T>(O) : GH * round_up<T>(O),  // of_h
            !d_x ? 0 : few ? threads * size_in_place<T>(I) : (JH + AH) * round_up<T>(I),  // of_x
            d_w_ih ? rows * round_up<T>(I) : 0,      // x_panels
            d_w_hh ? rows * round_up<T>(O) : 0,      // h_panels
            std::max(weights ? rows * G * H : 0, d_w_hr ? rows * O : 0),  // slivers
            projects ? most_rows * OP : 0,           // d_outputs
            projects ? OP * round_up<T>(H) : 0,      // of_m
            d_w_hr ? rows * round_up<T>(H) : 0,      // m_panels
        };
        T **places[] = {&total, &total_x, &states, &sums, &d_m};
        P **for_products[] = {&delta,    &delta_x,  &of_h,    &of_x,      &x_panels,
                              &h_panels, &slivers, &d_outputs, &of_m, &m_panels};
        norms.widths[0] = O;
        for (int i = 1; i < STATES; i++) norms.widths[i] = H;
        const int64_t of_norms = q.row_norms ? chunk_rows * norms.of_row() : 0;
        if (!arena.reserve(Arena::size_of<double>(of_norms) + Arena::size_of<int64_t>(N) +
                           Arena::size_of(sizes, places) +
                           Arena::size_of(of_products, for_products)))
            return false;
        arena.take(sizes, places);
        arena.take(of_products, for_products);
        norms.squares = arena.take<double>(of_norms);
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

    // A state before a row's step, [H], or null where it was reset.
    const T *before(int i, int64_t row) const {
        const int64_t from = previous[row];
        if (from == NONE) return nullptr;
        if (from <= START) return S::at(q.state_0[i]) + (START - from) * width(i);
        return i ? kept_state(i, from) : y + from * O;
    }
    const T *kept_state(int i, int64_t row) const { return kept_states + ((i - 1) * N + row) * Hp; }
    T *d_state(int i, int64_t b) const { return states + (i * W + b) * row_of_states; }
    int64_t width(int i) const { return i ? H : O; }  // of a state

    void work(const Member &me) {
        const Range units = me.share(H, WIDTH<T>), inputs = me.share(I, WIDTH<T>);
        const Range outputs = me.share(O, WIDTH<T>);
        const Panels<P> to_h{of_h + outputs.begin * GH, G * H, outputs.size(), widest_panel(W)};
        const Panels<P> to_m{of_m + units.begin * OP, O, units.size(), widest_panel(W)};
        const Panels<P> to_x{of_x + inputs.begin * (JH + AH), JH + A * H, inputs.size(),
                             widest_panel(most_rows)};
        if (!few) pack_rows(to_h, [&](int64_t k) { return S::at(q.w_hh) + k * O + outputs.begin; });
        if (projects) pack_rows(to_m, [&](int64_t k) { return S::at(q.w_hr) + k * H + units.begin; });
        if (d_x && !few)
            pack_rows(to_x, [&](int64_t k) -> const T * {
                const int64_t filled = JH - JOINT * H;  // between what is joint and what is apart
                if (k >= JOINT * H && k < JH) return nullptr;
                return S::at(q.w_ih) + (k < JH ? k : k - filled) * I + inputs.begin;
            });
        begin(units, outputs);
        bool first = true;
        walk.chunks(BACKWARD_ROWS, walk_rows, [&](const Chunk &chunk) {
            recur(me, chunk, units, outputs, to_h, to_m);
            const int64_t n = chunk.high - chunk.low;
            if (q.row_norms) norms.report(me.share(n * STATES), q.row_norms + chunk.low * STATES);
            if (d_x && (!windowed || q.by_windows))
                of_inputs(me, delta, delta_x, chunk.low, n, inputs, to_x);
            if (!windowed) of_weights(me, delta, delta_x, chunk.low, n, first);
            if (d_w_hr) of_projection(me, chunk.low, n, first);
            first = false;
            me.wait();  // the deltas' place is used again
        });
        if (summed)
            for (int64_t low = 0; low < N; low += BACKWARD_ROWS) {
                const int64_t n = std::min(BACKWARD_ROWS, N - low);
                const P *const of_h = deltas(me, total, delta, low, n, G * H);
                const P *const of_x = deltas(me, total_x, delta_x, low, n, A * H);
                if (IS_ROUNDED<P>) me.wait();
                if (d_x && !q.by_windows) of_inputs(me, of_h, of_x, low, n, inputs, to_x);
                of_weights(me, of_h, of_x, low, n, low == 0);
                me.wait();
            }
        finish(units, outputs);
    }

    // Some rows of the summed deltas as a side of products.
    const P *deltas(const Member &me, const T *all, P *place, int64_t low, int64_t n, int64_t K) {
        const int64_t row = paired<P>(K);
        if constexpr (!IS_ROUNDED<P>) return all + low * row;
        const Range rows = me.share(n);
        round_rows<P>(rows.size(), 0, K, K, all + (low + rows.begin) * row, row,
                      place + rows.begin * row, row);
        return place;
    }

    void begin(const Range &units, const Range &outputs) {
        const int64_t end = units.begin + round_up<T>(units.size());
        for (int i = 0; i < STATES; i++) {
            const T *const from = S::at(q.d_state[i]);
            const Range own = i ? units : outputs;
            const int64_t last = own.begin + round_up<T>(own.size());
            for (int64_t w = 0; w < W; w++)
                for (int64_t u = own.begin; u < last; u++)
                    d_state(i, w)[u] = from && u < width(i) ? from[w * width(i) + u] : T(0);
        }
        for (int k = 0; k < G + A + U; k++)
            std::fill(sums + k * Hp + units.begin, sums + k * Hp + end, T(0));
        for (int64_t row = 0; summed && row < N; row++)
            for (int d = 0; d < G + A; d++) {
                T *const to = delta_row(total, total_x, row, d);
                std::fill(to + units.begin, to + units.end, T(0));
            }
        if (units.begin < units.end && units.end == H)  // what fills the last pair
            for (int64_t row = 0; row < chunk_rows; row++) {
                std::fill(delta + row * GH + G * H, delta + (row + 1) * GH, P{});
                std::fill(delta_x + row * AH + A * H, delta_x + (row + 1) * AH, P{});
                if (projects) std::fill(d_outputs + row * OP + O, d_outputs + (row + 1) * OP, P{});
            }
    }

    // The deltas of a row: of the gates' W_hh h, then of W_ih x of those where it is apart.
    template <class E> E *delta_row(E *of_h, E *of_x, int64_t row, int64_t d) const {
        return d < G ? of_h + row * GH + d * H : of_x + row * AH + (d - G) * H;
    }

    // The deltas of a chunk of steps, and the state's gradient before it.
    void recur(const Member &me, const Chunk &chunk, const Range &units, const Range &outputs,
               const Panels<P> &to_h, const Panels<P> &to_m) {
        const Panels<P> whole{to_h.data, to_h.depth, round_up<T>(outputs.size()), to_h.widest};
        const Panels<P> whole_m{to_m.data, to_m.depth, round_up<T>(units.size()), to_m.widest};
        walk.within(chunk, [&](int64_t s, int64_t low, int64_t n) {
            for (int64_t b = 0; b < n; b++) {
                receive(low + b, low + b - chunk.low, b, units, outputs);
                if (!projects) step(source(low + b), low + b - chunk.low, b, units);
            }
            if (projects) {
                me.wait();
                multiply<P>(n, O, {d_outputs + (low - chunk.low) * OP, OP}, whole_m,
                            d_m + units.begin, Hp, false);
                for (int64_t b = 0; b < n; b++)
                    step(source(low + b), low + b - chunk.low, b, units);
            }
            me.wait();
            if (s + 1 == walk.steps && !d_h) return;  // nobody asks for it
            const Left<P> left{delta + (low - chunk.low) * GH, GH};
            if (few)
                in_place(me, n, G * H, left, S::at(q.w_hh) + outputs.begin, O, outputs.size(), of_h,
                         states + outputs.begin, row_of_states, Cell::DIRECT);
            else
                multiply<P>(n, G * H, left, whole, states + outputs.begin, row_of_states,
                            Cell::DIRECT);
            if (carry || q.resets)
                for (int64_t b = 0; b < n; b++) cross(low + b, b, units, outputs);
        });
    }

    int64_t source(int64_t row) const { return windowed ? q.window_rows[row] : row; }

    // The gradients of the losses at a row, added to what the steps after hand down.
    void receive(int64_t row, int64_t in_chunk, int64_t b, const Range &units, const Range &outputs) {
        for (int i = 0; i < STATES; i++) {
            T *const d = d_state(i, b);
            const T *const more = S::at(q.d_after[i]);
            const Range own = i ? units : outputs;
            if (q.row_norms) norms.square(in_chunk, i, d, own);
            const int64_t n = width(i);
            for (int64_t u = own.begin; more && u < own.end; u += WIDTH<T>)
                store(d + u, load(d + u) + load(more + row * n + u, n - u));
        }
        for (int64_t u = outputs.begin; projects && u < outputs.end; u += WIDTH<T>)
            Operand<P>::store_row(d_outputs + in_chunk * OP + u, load(d_state(0, b) + u), O - u);
    }

    // The elementwise part of a row's step.
    void step(int64_t row, int64_t in_chunk, int64_t b, const Range &units) {
        const int64_t H = this->H, Hp = this->Hp;  // not to be read again after each store
        const T *const gate = gates + row * G * Hp, *const unit = S::at(q.units);
        const T *apart[room(A)], *before[STATES], *after[STATES];
        T *d_state[STATES], *total[G + A], *const sums = this->sums;
        P *delta[G + A];
        for (int a = 0; a < A; a++) apart[a] = kept_apart + (a * N + row) * Hp;
        for (int i = 0; i < STATES; i++) {
            before[i] = projects && i == 0 ? nullptr : this->before(i, row);  // it is not read
            after[i] = i ? kept_state(i, row) : projects ? kept_m + row * Hp : y + row * H;
            d_state[i] = projects && i == 0 ? d_m + b * Hp : this->d_state(i, b);
        }
        for (int d = 0; d < G + A; d++) {
            delta[d] = delta_row(this->delta, delta_x, in_chunk, d);
            total[d] = summed ? delta_row(this->total, total_x, row, d) : nullptr;
        }
        for (int64_t u = units.begin; u < units.end; u += WIDTH<T>) {
            BackwardStep<T, Cell> s;
            for (int g = 0; Cell::KEEPS_GATES && g < G; g++) s.gate[g] = load(gate + g * Hp + u);
            for (int a = 0; a < A; a++) s.apart[a] = load(apart[a] + u);
            for (int k = 0; k < U; k++) s.unit[k] = load(unit + k * H + u, H - u);
            for (int i = 0; i < STATES; i++) {
                s.before[i] = before[i] ? load(before[i] + u, H - u) : V<T>{};
                s.after[i] = i ? load(after[i] + u) : load(after[i] + u, H - u);
                s.d_state[i] = load(d_state[i] + u);
            }
            Cell::backward(s);
            for (int i = Cell::DIRECT ? 0 : 1; i < STATES; i++) store(d_state[i] + u, s.d_state[i]);
            auto put = [&](int d, V<T> v) {
                if (d < G + A) Operand<P>::store_row(delta[d] + u, v, H - u);
                if (d < G + A && total[d]) 
                    store(total[d] + u, load(total[d] + u, H - u) + rounded<T>(v), H - u);
                store(sums + d * Hp + u, load(sums + d * Hp + u) + v);
            };
            for (int g = 0; g < G; g++) put(g, g < JOINT ? s.d_gate[g] : s.d_apart[g - JOINT]);
            for (int a = 0; a < A; a++) put(G + a, s.d_gate[JOINT + a]);
            for (int k = 0; k < U; k++) put(G + A + k, s.d_unit[k]);
        }
    }

    // What of the state's gradient passes from a row's step to the one before.
    void cross(int64_t row, int64_t b, const Range &units, const Range &outputs) {
        const int64_t from = source(row);
        const T factor = q.resets && q.resets[from] ? T(0) : carry ? carry[from] : T(1);
        for (int i = 0; i < STATES; i++) {
            const Range own = i ? units : outputs;
            for (int64_t u = own.begin; u < own.end; u += WIDTH<T>) {
                T *const d = d_state(i, b) + u;
                store(d, factor == T(0) ? V<T>{} : load(d) * factor);
            }
        }
    }

    // d_x = deltas W_ih
    void of_inputs(const Member &me, const P *of_h, const P *of_x, int64_t low, int64_t n,
                   const Range &inputs, const Panels<P> &to_x) {
        T *to = d_x + low * I + inputs.begin;
        const auto add = [&](int64_t K, Left<P> left, int64_t first, int64_t packed_first) {
            if (few)
                in_place(me, n, K, left, S::at(q.w_ih) + first * I + inputs.begin, I, inputs.size(),
                         this->of_x, to, I, first > 0);
            else
                multiply<P>(n, K, left, to_x, to, I, first > 0, packed_first);
        };
        if (JOINT) add(JOINT * H, {of_h, GH}, 0, 0);
        if (A) add(A * H, {of_x, AH}, JOINT * H, JH);
    }

    // The product with rows of a weight, as they are; `place` has room for each thread.
    void in_place(const Member &me, int64_t n, int64_t K, Left<P> left, const T *w, int64_t w_row,
                  int64_t columns, P *place, T *to, int64_t to_row, bool add) const {
        if constexpr (!IS_ROUNDED<P>)
            multiply_in_place<T>(n, K, left, w, w_row, columns,
                                 place + me.number * size_in_place<T>(w_row), to, to_row, add);
    }

    // d_W += deltasᵀ [x, h_before], over n rows
    void of_weights(const Member &me, const P *of_h, const P *of_x, int64_t low, int64_t n,
                    bool first) {
        if (!d_w_ih && !d_w_hh) return;
        const Panels<P> xs{x_panels, n, I, widest_panel(MOST_ROWS)};
        const Panels<P> hs{h_panels, n, O, widest_panel(MOST_ROWS)};
        if (d_w_ih) pack_share<P>(me, xs, [&](int64_t k) { return x + (low + k) * I; });
        if (d_w_hh) pack_share<P>(me, hs, [&](int64_t k) { return before(0, low + k); });
        me.wait();
        const Range own = me.share(G * H, MOST_ROWS);
        const Range both{own.begin, std::min(own.end, JOINT * H)};
        const Range apart{std::max(own.begin, JOINT * H), own.end};
        P *packed = slivers + own.begin * paired<P>(n);
        if (both.size() > 0) {
            pack_slivers(both.size(), n, of_h + both.begin, GH, xs.widest, packed);
            if (d_w_ih)
                multiply<P>(both.size(), n, {packed, 0}, xs, d_w_ih + both.begin * I, I, !first);
            if (d_w_hh)
                multiply<P>(both.size(), n, {packed, 0}, hs, d_w_hh + both.begin * O, O, !first);
        }
        if (apart.size() <= 0) return;
        if (d_w_ih) {
            pack_slivers(apart.size(), n, of_x + apart.begin - JOINT * H, AH, xs.widest, packed);
            multiply<P>(apart.size(), n, {packed, 0}, xs, d_w_ih + apart.begin * I, I, !first);
        }
        if (d_w_hh) {
            pack_slivers(apart.size(), n, of_h + apart.begin, GH, hs.widest, packed);
            multiply<P>(apart.size(), n, {packed, 0}, hs, d_w_hh + apart.begin * O, O, !first);
        }
    }

    // d_W_hr += (gradients of h)ᵀ m, over n rows
    void of_projection(const Member &me, int64_t low, int64_t n, bool first) {
        me.wait();  // the slivers' place is used again
        const Panels<P> panels{m_panels, n, H, widest_panel(MOST_ROWS)};
        pack_share<P>(me, panels, [&](int64_t k) { return kept_m + source(low + k) * Hp; });
        me.wait();
        const Range own = me.share(O, MOST_ROWS);
        P *const packed = slivers + own.begin * paired<P>(n);
        pack_slivers(own.size(), n, d_outputs + own.begin, OP, panels.widest, packed);
        multiply<P>(own.size(), n, {packed, 0}, panels, d_w_hr + own.begin * H, H, !first);
    }

    void finish(const Range &units, const Range &outputs) {
        for (int i = 0; d_h && i < STATES; i++) {
            const Range own = i ? units : outputs;
            for (int64_t w = 0; w < W; w++)
                std::copy(d_state(i, w) + own.begin, d_state(i, w) + own.end,
                          S::at(q.d_state[i]) + w * width(i) + own.begin);
        }
        auto put = [&](void *to, int64_t row, int64_t of_sums) {
            if (to)
                std::copy(sums + of_sums * Hp + units.begin, sums + of_sums * Hp + units.end,
                          S::at(to) + row * H + units.begin);
        };
        for (int g = 0; g < G; g++) {
            put(q.d_b_hh, g, g);
            put(q.d_b_ih, g, g < JOINT ? g : A + g);
        }
        for (int k = 0; k < U; k++) put(q.d_units, k, G + A + k);
    }
};

}  // namespace
