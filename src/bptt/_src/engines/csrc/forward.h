// A whole sequence of one layer, forward. What each thread does for its own hidden units, and where
// all wait for each other: once a step, when h_t is there, and before a projection, when m_t is.
#pragma once
#include "sequence.h"

namespace {

template <class P, class Cell> struct Forward : Sizes<P, Cell> {
    using S = Sizes<P, Cell>;
    using typename S::T;
    using S::A, S::B, S::G, S::H, S::Hp, S::I, S::JOINT, S::N, S::O, S::projects, S::q, S::STATES,
        S::U;

    const T *const x = S::at(q.x), *const h_0 = S::at(q.state_0[0]);
    T *const y = S::at(q.y);
    const Walk walk{q.sizes, q.steps, q.reverse != 0};
    // Whether the rows of step t-1 are, as they are, those from which step t starts.
    const bool plain = !q.resets && (S::is_dense() || !q.reverse);
    const bool keeps = q.kept != nullptr;
    const int64_t chunk_rows = walk.most_rows(FORWARD_ROWS);
    // Whether the weights are read where they are: packed, they would hardly be used again.
    const bool few_x = !IS_ROUNDED<P> && N <= FEW, few_h = !IS_ROUNDED<P> && B * q.steps <= FEW;
    // What is apart, [A, rows, Hp], has as many rows as the gates. The other states are of each
    // sequence, [STATES - 1, B, Hp]; to be kept, [STATES - 1, N, Hp].
    T *gates, *apart, *bias, *states, *before[2], *kept_states;
    T *ms;  // where there is a projection, of a step, [B, Hp], or to be kept, [N, Hp]
    P *of_x, *of_h, *of_m;
    // Where products round: a chunk's inputs, [rows, I], h before a step, [B, O], and m, [B, H].
    P *rounded_x, *rounded_h[2], *rounded_m;

    explicit Forward(const bptt_sequence &sequence) : S(sequence) {}

    int team() const { return S::team(B); }

    bool reserve(Arena &arena) {
        const bool own = Cell::KEEPS_GATES && !keeps;
        const int64_t sizes[] = {
            own ? chunk_rows * G * Hp : 0,          // gates
            own ? A * chunk_rows * Hp : 0,          // apart
            (G + A) * Hp,                           // bias
            (STATES - 1) * B * Hp,                  // states
            plain ? 0 : B * O, plain ? 0 : B * O,   // before
            projects && !keeps ? B * Hp : 0,        // ms
        };
        const int64_t of_h_left = IS_ROUNDED<P> ? B * paired<P>(O) : 0;
        const int64_t of_products[] = {
            few_x ? 0 : G * paired<P>(I) * round_up<T>(H),
            few_h ? 0 : G * paired<P>(O) * round_up<T>(H),
            projects && !few_h ? paired<P>(H) * round_up<T>(O) : 0,
            IS_ROUNDED<P> ? chunk_rows * paired<P>(I) : 0, of_h_left, of_h_left,
            IS_ROUNDED<P> && projects ? B * paired<P>(H) : 0,
        };
        T **places[] = {&gates, &apart, &bias, &states, &before[0], &before[1], &ms};
        P **for_products[] = {&of_x,         &of_h,         &of_m,     &rounded_x,
                              &rounded_h[0], &rounded_h[1], &rounded_m};
        if (!arena.reserve(Arena::size_of(sizes, places) + Arena::size_of(of_products, for_products)))
            return false;
        arena.take(sizes, places);
        arena.take(of_products, for_products);
        if (Cell::KEEPS_GATES && keeps) {
            gates = static_cast<T *>(q.kept);
            apart = gates + N * G * Hp;
            kept_states = apart + A * N * Hp;
            if (projects) ms = kept_states, kept_states += N * Hp;
        }
        return true;
    }

    // Where the gates of a row of a chunk lie, and how far apart rows and gates are.
    T *gate_row(const Chunk &chunk, int64_t row) const {
        if (!Cell::KEEPS_GATES) return y + row * H;
        return gates + (keeps ? row : row - chunk.low) * G * Hp;
    }
    int64_t row_apart() const { return Cell::KEEPS_GATES ? G * Hp : H; }
    T *apart_row(const Chunk &chunk, int64_t row, int64_t a) const {
        return apart + (a * (keeps ? N : chunk_rows) + (keeps ? row : row - chunk.low)) * Hp;
    }

    void work(const Member &me) {
        const Range units = me.share(H, WIDTH<T>), outputs = me.share(O, WIDTH<T>);
        // Of the gates, which have room for whole vectors; of an Elman network's y, which has not.
        const int64_t columns = Cell::KEEPS_GATES ? round_up<T>(units.size()) : units.size();
        Panels<P> from_x[G], from_h[G];
        for (int g = 0; g < G; g++) {
            const int64_t place = units.begin * G + g * round_up<T>(units.size());
            from_x[g] = {of_x + place * paired<P>(I), I, units.size(), widest_panel(chunk_rows)};
            from_h[g] = {of_h + place * paired<P>(O), O, units.size(), widest_panel(B)};
            const int64_t first = g * H + units.begin;
            if (!few_x) pack_transposed(from_x[g], S::at(q.w_ih) + first * I, I);
            if (!few_h) pack_transposed(from_h[g], S::at(q.w_hh) + first * O, O);
            from_x[g].columns = from_h[g].columns = columns;
        }
        const Panels<P> from_m{of_m + outputs.begin * paired<P>(H), H, outputs.size(), widest_panel(B)};
        if (projects && !few_h) pack_transposed(from_m, S::at(q.w_hr) + outputs.begin * H, H);
        begin(me, units, outputs);
        walk.chunks(FORWARD_ROWS, N, [&](const Chunk &chunk) {
            T *to = gate_row(chunk, chunk.low) + units.begin;
            const Left<P> left = inputs(me, chunk);
            const int64_t n = chunk.high - chunk.low;
            for (int g = 0; g < G; g++)
                if (few_x)
                    few(n, I, x + chunk.low * I, I, q.w_ih, g * H, units, columns, to + g * Hp,
                        row_apart(), false);
                else
                    multiply<P>(n, I, left, from_x[g], to + g * Hp, row_apart(), false);
            walk.within(chunk, [&](int64_t s, int64_t row, int64_t n) {
                recur(chunk, s, row, n, units, from_h);
                if (projects) project(me, row, n, units, outputs, from_m);
                set_next(s, row, n, outputs);
                me.wait();
            });
        });
        finish(units, outputs);
    }

    // The product of a few rows with some of the weights' rows.
    void few(int64_t n, int64_t K, const T *a, int64_t a_row, const void *weights, int64_t first,
             const Range &of, int64_t room, T *to, int64_t to_row, bool add) const {
        multiply_transposed<T>(std::make_integer_sequence<int, 8>(), n, K, a, a_row,
                               S::at(weights) + (first + of.begin) * K, K, of.size(), room, to,
                               to_row, add);
    }

    // Biases, and the state before the first step.
    void begin(const Member &me, const Range &units, const Range &outputs) {
        const T *b_ih = S::at(q.b_ih), *b_hh = S::at(q.b_hh);
        for (int64_t u = units.begin; u < units.begin + round_up<T>(units.size()); u++) {
            for (int g = 0; g < G; g++) {
                const T of_x = b_ih && u < H ? b_ih[g * H + u] : T(0);
                const T of_h = b_hh && u < H ? b_hh[g * H + u] : T(0);
                bias[g * Hp + u] = g < JOINT ? of_x + of_h : of_x;
                if (g >= JOINT) bias[(A + g) * Hp + u] = of_h;
            }
            for (int i = 1; i < STATES; i++)
                for (int64_t b = 0; b < B; b++)
                    state(i, b)[u] = u < H ? S::at(q.state_0[i])[b * H + u] : T(0);
        }
        const int64_t first = walk.last_first ? N - walk.size(0) : 0;
        if (!plain) set_before(0, nullptr, 0, first, walk.size(0), outputs);
        round_h(0, first, walk.size(0), outputs);
        if (!plain) me.wait();
    }

    T *state(int i, int64_t b) const { return states + ((i - 1) * B + b) * Hp; }

    // A chunk's inputs as the left side of a product.
    Left<P> inputs(const Member &me, const Chunk &chunk) {
        if constexpr (!IS_ROUNDED<P>) return {x + chunk.low * I, I};
        const Range rows = me.share(chunk.high - chunk.low);
        const int64_t row = paired<P>(I);
        round_rows<P>(rows.size(), 0, I, I, x + (chunk.low + rows.begin) * I, I,
                      rounded_x + rows.begin * row, row);
        me.wait();  // also for h before the first step
        return {rounded_x, row};
    }

    // h before step s as the left side of a product: a part of it, to be read by all after a wait.
    void round_h(int64_t s, int64_t row, int64_t n, const Range &outputs) {
        if constexpr (IS_ROUNDED<P>)
            round_rows<P>(n, outputs.begin, outputs.end, O, h_before(s, row), O, rounded_h[s % 2],
                          paired<P>(O));
    }
    Left<P> left_h(int64_t s, const T *h) const {
        if constexpr (IS_ROUNDED<P>) return {rounded_h[s % 2], paired<P>(O)};
        else return {h, O};
    }

    const T *h_before(int64_t s, int64_t row) const {
        if (!plain) return before[s % 2];
        if (s == 0) return h_0;
        return y + (row + (walk.last_first ? walk.size(s) : -walk.size(s - 1))) * O;
    }

    // h before step s, where it is not the last one's: sequences that begin, and resets.
    void set_before(int64_t s, const T *last, int64_t running, int64_t row, int64_t n,
                    const Range &outputs) {
        for (int64_t b = 0; b < n; b++) {
            T *to = before[s % 2] + b * O;
            const T *from = b < running ? last + b * O : h_0 + b * O;
            if (q.resets && q.resets[row + b])
                std::fill(to + outputs.begin, to + outputs.end, T(0));
            else
                std::copy(from + outputs.begin, from + outputs.end, to + outputs.begin);
        }
    }

    void recur(const Chunk &chunk, int64_t s, int64_t row, int64_t n, const Range &units,
               const Panels<P> *from_h) {
        const T *h = h_before(s, row);
        for (int g = 0; g < G; g++) {
            const bool joint = g < JOINT;
            T *to = joint ? gate_row(chunk, row) + g * Hp : apart_row(chunk, row, g - JOINT);
            const int64_t apart = joint ? row_apart() : Hp;
            const int64_t room = from_h[g].columns;
            if (few_h) few(n, O, h, O, q.w_hh, g * H, units, room, to + units.begin, apart, joint);
            else multiply<P>(n, O, left_h(s, h), from_h[g], to + units.begin, apart, joint);
        }
        for (int64_t b = 0; b < n; b++) step(chunk, row + b, b, h + b * O, units);
    }

    T *m_row(int64_t row, int64_t b) const { return ms + (keeps ? row : b) * Hp; }

    // h = W_hr m
    void project(const Member &me, int64_t row, int64_t n, const Range &units, const Range &outputs,
                 const Panels<P> &from_m) {
        const T *const m = m_row(row, 0);
        Left<P> left{rounded_m, paired<P>(H)};
        if constexpr (IS_ROUNDED<P>)
            round_rows<P>(n, units.begin, units.end, H, m, Hp, rounded_m, left.row);
        else left = {m, Hp};
        me.wait();
        T *const to = y + row * O + outputs.begin;
        if (few_h) few(n, H, m, Hp, q.w_hr, 0, outputs, outputs.size(), to, O, false);
        else multiply<P>(n, H, left, from_m, to, O, false);
    }

    // h before the step after s.
    void set_next(int64_t s, int64_t row, int64_t n, const Range &outputs) {
        if (s + 1 == walk.steps) return;
        const int64_t next = walk.size(s + 1);
        const int64_t next_row = walk.last_first ? row - next : row + n;
        if (!plain) set_before(s + 1, y + row * O, n, next_row, next, outputs);
        round_h(s + 1, next_row, next, outputs);
    }

    // The elementwise part of a row's step.
    void step(const Chunk &chunk, int64_t row, int64_t b, const T *h, const Range &units) {
        const int64_t H = this->H, Hp = this->Hp;  // not to be read again after each store
        const bool reset = q.resets && q.resets[row], keeps = this->keeps;
        T *const gate = gate_row(chunk, row), *const out = projects ? m_row(row, b) : y + row * H;
        const T *const bias = this->bias, *const unit = S::at(q.units);
        T *apart[room(A)], *state[STATES], *kept[STATES];
        for (int a = 0; a < A; a++) apart[a] = apart_row(chunk, row, a);
        for (int i = 1; i < STATES; i++) {
            state[i] = this->state(i, b);
            kept[i] = keeps ? kept_states + ((i - 1) * N + row) * Hp : nullptr;
        }
        for (int64_t u = units.begin; u < units.end; u += WIDTH<T>) {
            ForwardStep<T, Cell> s;
            for (int g = 0; g < G; g++) {
                const T *const from = gate + g * Hp + u;
                s.gate[g] = Cell::KEEPS_GATES ? load(from) : load(from, H - u);
                s.gate[g] += load(bias + g * Hp + u);
            }
            for (int a = 0; a < A; a++)
                s.apart[a] = load(apart[a] + u) + load(bias + (G + a) * Hp + u);
            for (int k = 0; k < U; k++) s.unit[k] = load(unit + k * H + u, H - u);
            s.before[0] = projects ? V<T>{} : load(h + u, H - u);  // which it does not read
            for (int i = 1; i < STATES; i++) s.before[i] = reset ? V<T>{} : load(state[i] + u);
            Cell::forward(s);
            for (int g = 0; Cell::KEEPS_GATES && g < G; g++) store(gate + g * Hp + u, s.gate[g]);
            for (int a = 0; a < A; a++) store(apart[a] + u, s.apart[a]);
            for (int i = 1; i < STATES; i++) {
                store(state[i] + u, s.after[i]);
                if (keeps) store(kept[i] + u, s.after[i]);
            }
            if (projects) store(out + u, s.after[0]);  // m has room for whole vectors
            else store(out + u, s.after[0], H - u);
        }
    }

    // The final states: of each sequence's last step.
    void finish(const Range &units, const Range &outputs) {
        T *h_n = S::at(q.state_n[0]);
        int64_t row = 0;
        for (int64_t t = 0; t < q.steps; t++) {
            const int64_t n = q.sizes[t];
            const int64_t go_on = t + 1 < q.steps && !q.reverse ? q.sizes[t + 1] : 0;
            for (int64_t b = go_on; b < n; b++) {
                const T *from = y + (row + b) * O;
                std::copy(from + outputs.begin, from + outputs.end, h_n + b * O + outputs.begin);
            }
            if (q.reverse) break;  // all of them end at the first step
            row += n;
        }
        for (int i = 1; i < STATES; i++)
            for (int64_t b = 0; b < B; b++)
                std::copy(state(i, b) + units.begin, state(i, b) + units.end,
                          S::at(q.state_n[i]) + b * H + units.begin);
    }
};

}  // namespace
