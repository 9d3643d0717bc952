// What both passes through a sequence know: its steps, and the sizes of its cell.
#pragma once
#include "arena.h"
#include "cell.h"
#include "matrix.h"
#include "team.h"

namespace {

constexpr int64_t FORWARD_ROWS = 128;   // whose inputs are projected at a time
constexpr int64_t BACKWARD_ROWS = 512;  // whose deltas go into the weights' gradients at a time
constexpr int64_t SMALL_STEP = 12000; // multiplications of a step that are not worth a barrier

template <class T> int64_t padded(int64_t n) {  // the same with every instruction set
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

    int64_t all() const {
        int64_t rows = 0;
        for (int64_t s = 0; s < steps; s++) rows += sizes[s];
        return rows;
    }

    // Call each(s, first row, size) for each step.
    template <class Each> void each(Each each) const {
        within({0, steps, 0, all()}, each);
    }

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
        int64_t most = 0;
        chunks(rows, all(), [&](const Chunk &c) { most = std::max(most, c.high - c.low); });
        return most;
    }
};

// P: what products are made of; all else is the numbers that they are summed in.
template <class P, class Cell> struct Sizes {
    using T = Sum<P>;
    const bptt_sequence &q;
    const int64_t B = q.batch, I = q.inputs, H = q.hidden, N = q.rows;
    // The size of h: H, unless it is W_hr times what the equations call h, here m.
    const int64_t O = q.outputs;
    const bool projects = q.w_hr != nullptr;
    static constexpr int64_t G = Cell::GATES, A = Cell::APART, U = Cell::UNITS;
    static constexpr int64_t STATES = Cell::STATES;
    static constexpr int64_t JOINT = G - A;  // the first gates, where W_ih x and W_hh h are added
    const int64_t Hp = padded<T>(H);

    explicit Sizes(const bptt_sequence &sequence) : q(sequence) {}
    // How many threads are worth it, with so many sequences side by side.
    int team(int64_t sequences) const {
        return sequences * H * G * H < SMALL_STEP ? 1 : int(q.threads);
    }
    bool is_dense() const { return q.sizes[q.steps - 1] == B; }
    static T *at(const void *p) { return static_cast<T *>(const_cast<void *>(p)); }
};

// Pack rows, as pack_rows() does; each thread every so many-th panel.
template <class P, class Row> void pack_share(const Member &me, const Panels<P> &b, Row row) {
    int64_t number = 0;
    b.walk([&](int64_t column, int wide, P *panel) {
        if (number++ % me.team != me.number) return;
        const int64_t width = std::min<int64_t>(wide * WIDTH<Sum<P>>, b.columns - column);
        pack_panel<P>(b.depth, row, column, width, wide, panel);
    });
}

}  // namespace
