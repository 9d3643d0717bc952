// A whole sequence of one layer, forward. What each thread does for its own hidden units, and where
// all wait for each other: once a step, when h_t is there.
#pragma once
#include "sequence.h"

namespace {

template <class T, class Cell> struct Forward : Sizes<T, Cell> {
    using S = Sizes<T, Cell>;
    using S::A, S::B, S::G, S::H, S::Hp, S::I, S::JOINT, S::N, S::q, S::STATES, S::U;

    const T *const x = S::template at<T>(q.x), *const h_0 = S::template at<T>(q.state_0[0]);
    T *const y = S::template at<T>(q.y);
    const Walk walk{q.sizes, q.steps, q.reverse != 0};
    // Whether the rows of step t-1 are, as they are, those from which step t starts.
    const bool plain = !q.resets && (S::is_dense() || !q.reverse);
    const bool keeps = q.kept != nullptr;
    const int64_t chunk_rows = walk.most_rows(FORWARD_ROWS);
    // What is apart, [A, rows, Hp], has as many rows as the gates. The other states are of each
    // sequence, [STATES - 1, B, Hp]; to be kept, [STATES - 1, N, Hp].
    T *gates, *apart, *bias, *states, *before[2], *of_x, *of_h, *kept_states;

    explicit Forward(const bptt_sequence &sequence) : S(sequence) {}

    int team() const { return S::team(B); }

    bool reserve(Arena &arena) {
        const bool own = Cell::KEEPS_GATES && !keeps;
        const int64_t sizes[] = {
            own ? chunk_rows * G * Hp : 0,          // gates
            own ? A * chunk_rows * Hp : 0,          // apart
            (G + A) * Hp,                           // bias
            (STATES - 1) * B * Hp,                  // states
            plain ? 0 : B * H, plain ? 0 : B * H,   // before
            G * I * round_up<T>(H), G * H * round_up<T>(H),
        };
        T **places[] = {&gates, &apart, &bias, &states, &before[0], &before[1], &of_x, &of_h};
        int64_t bytes = 0;
        for (int64_t n : sizes) bytes += Arena::size_of<T>(n);
        if (!arena.reserve(bytes)) return false;
        for (int i = 0; i < 8; i++) *places[i] = arena.take<T>(sizes[i]);
        if (Cell::KEEPS_GATES && keeps) {
            gates = static_cast<T *>(q.kept);
            apart = gates + N * G * Hp;
            kept_states = apart + A * N * Hp;
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
                const T of_x = b_ih && u < H ? b_ih[g * H + u] : T(0);
                const T of_h = b_hh && u < H ? b_hh[g * H + u] : T(0);
                bias[g * Hp + u] = g < JOINT ? of_x + of_h : of_x;
                if (g >= JOINT) bias[(A + g) * Hp + u] = of_h;
            }
            for (int i = 1; i < STATES; i++)
                for (int64_t b = 0; b < B; b++)
                    state(i, b)[u] = u < H ? S::template at<T>(q.state_0[i])[b * H + u] : T(0);
        }
        if (!plain) {
            set_before(0, nullptr, 0, walk.last_first ? N - walk.size(0) : 0, walk.size(0), units);
            me.wait();
        }
    }

    T *state(int i, int64_t b) const { return states + ((i - 1) * B + b) * Hp; }

    const T *h_before(int64_t s, int64_t row) const {
        if (!plain) return before[s % 2];
        if (s == 0) return h_0;
        return y + (row + (walk.last_first ? walk.size(s) : -walk.size(s - 1))) * H;
    }

    // h before step s, where it is not the last one's: sequences that begin, and resets.
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
        const T *h = h_before(s, row);
        for (int g = 0; g < G; g++) {
            const bool joint = g < JOINT;
            T *to = joint ? gate_row(chunk, row) + g * Hp : apart_row(chunk, row, g - JOINT);
            multiply<T>(n, H, {h, H}, from_h[g], to + units.begin, joint ? row_apart() : Hp, joint);
        }
        for (int64_t b = 0; b < n; b++) step(chunk, row + b, b, h + b * H, units);
        if (!plain && s + 1 < walk.steps) {
            const int64_t next = walk.size(s + 1);
            const int64_t next_row = walk.last_first ? row - next : row + n;
            set_before(s + 1, y + row * H, n, next_row, next, units);
        }
    }

    // The elementwise part of a row's step.
    void step(const Chunk &chunk, int64_t row, int64_t b, const T *h, const Range &units) {
        const int64_t H = this->H, Hp = this->Hp;  // not to be read again after each store
        const bool reset = q.resets && q.resets[row], keeps = this->keeps;
        T *const gate = gate_row(chunk, row), *const out = y + row * H;
        const T *const bias = this->bias, *const unit = S::template at<T>(q.units);
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
            s.before[0] = load(h + u, H - u);
            for (int i = 1; i < STATES; i++) s.before[i] = reset ? V<T>{} : load(state[i] + u);
            Cell::forward(s);
            for (int g = 0; Cell::KEEPS_GATES && g < G; g++) store(gate + g * Hp + u, s.gate[g]);
            for (int a = 0; a < A; a++) store(apart[a] + u, s.apart[a]);
            for (int i = 1; i < STATES; i++) {
                store(state[i] + u, s.after[i]);
                if (keeps) store(kept[i] + u, s.after[i]);
            }
            store(out + u, s.after[0], H - u);
        }
    }

    // The final states: of each sequence's last step.
    void finish(const Range &units) {
        T *h_n = S::template at<T>(q.state_n[0]);
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
        for (int i = 1; i < STATES; i++)
            for (int64_t b = 0; b < B; b++)
                std::copy(state(i, b) + units.begin, state(i, b) + units.end,
                          S::template at<T>(q.state_n[i]) + b * H + units.begin);
    }
};

}  // namespace
