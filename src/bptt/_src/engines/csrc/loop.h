// A loop over the steps of a sequence whose step is a program: instructions on rows of numbers, as
// bptt_kernels.h has them. The sequences are divided among the threads, which never wait for each
// other: what a row holds depends on no other row. Where there are fewer sequences than threads, and
// no unit sees another one, the units are.
//
// Between two products, instructions run on a few sequences at a time, one instruction after the
// other, so that what they leave for each other stays in the first cache.
#pragma once
#include "arena.h"
#include "instructions.h"
#include "matrix.h"
#include "sequence.h"
#include "team.h"

namespace {

constexpr int64_t SMALL_LOOP = 100000;    // operations that are not worth a second thread
constexpr int64_t TILE_BYTES = 24 << 10;  // of what instructions leave for each other
constexpr int64_t FEW_UNITS = 32;         // that are not divided among threads
constexpr int64_t LINE = 16;              // units that lie side by side in a thread's share

template <class P> struct Loop {
    using T = Sum<P>;
    const bptt_loop &q;
    const Walk walk{q.sizes, q.steps, q.reverse != 0};
    const int64_t B = q.batch;

    // Where the rows of a place lie: those of a tile, of the sequences, or of all steps.
    enum Rows { OF_TILE, OF_SEQUENCES, OF_STEPS, KINDS };
    struct Place {
        T *data;
        int64_t row;  // from one row to the next
        Rows rows;
    };
    Place *places;
    Panels<P> *panels;
    P *rounded;       // the left sides of products, [B, most columns of any], where they round
    int64_t tile = 1, rounded_row = 0;
    const int64_t units = independent_units();  // as wide as all places; or 0

    explicit Loop(const bptt_loop &loop) : q(loop) {}

    // The width of all places, if what is in one column never comes into another one; or 0.
    int64_t independent_units() const {
        const int64_t width = q.places[0].width;
        if (q.norms) return 0;
        for (int64_t i = 0; i < q.instructions; i++)
            if (q.code[i].op < ELEMENTWISE) return 0;
        for (int64_t i = 0; i < q.n_places; i++) {
            const bptt_place &p = q.places[i];
            if (p.kind == BPTT_PART || p.width != width) return 0;
            for (int64_t j = 0; j < i && p.kind == BPTT_ROWS; j++) {
                const int64_t apart = std::abs(int64_t(p.data) - int64_t(q.places[j].data));
                if (q.places[j].kind == BPTT_ROWS && apart && apart < width * int64_t(sizeof(T))) return 0;
            }
        }
        return width;
    }

    bool is_by_units() const { return units && B < q.threads; }

    // A share of the columns of a place.
    static Range some(const Range &own, int64_t width) {
        return {std::min(own.begin, width), std::min(own.end, width)};
    }

    int team() const {
        int64_t work = 0;
        for (int64_t i = 0; i < q.instructions; i++) {
            const bptt_instruction &code = q.code[i];
            const int64_t width = q.places[code.to].width;
            work += code.op == PRODUCT ? width * q.weights[code.b].depth : width;
        }
        const int64_t rows = walk.all();
        if (work * rows < SMALL_LOOP) return 1;
        return int(std::min(q.threads, is_by_units() ? std::max(B, units / FEW_UNITS) : B));
    }

    static int64_t own_row(const bptt_place &p) { return round_up<T>(p.width); }

    bool reserve(Arena &arena) {
        int64_t temporary = 0, bytes = 0;
        for (int64_t i = 0; i < q.n_places; i++)
            if (q.places[i].kind == BPTT_TEMPORARY) temporary += own_row(q.places[i]);
        if (temporary)
            tile = std::max<int64_t>(1, std::min<int64_t>(B, TILE_BYTES / int64_t(sizeof(T)) / temporary));
        for (int64_t i = 0; i < q.n_weights; i++) {
            bytes += Arena::size_of<P>(packed_size(q.weights[i]));
            rounded_row = std::max(rounded_row, paired<P>(q.weights[i].depth));
        }
        if (!IS_ROUNDED<P>) rounded_row = 0;
        bytes += Arena::size_of<P>(B * rounded_row) + Arena::size_of<Place>(q.n_places) +
                 Arena::size_of<Panels<P>>(q.n_weights);
        for (int64_t i = 0; i < q.n_places; i++) bytes += Arena::size_of<T>(storage(q.places[i]));
        if (!arena.reserve(bytes)) return false;
        places = arena.take<Place>(q.n_places);
        panels = arena.take<Panels<P>>(q.n_weights);
        rounded = arena.take<P>(B * rounded_row);
        for (int64_t i = 0; i < q.n_weights; i++) {
            const bptt_weight &w = q.weights[i];
            panels[i] = {arena.take<P>(packed_size(w)), w.depth, w.columns, widest_panel(most_rows())};
        }
        for (int64_t i = 0; i < q.n_places; i++) {
            const bptt_place &p = q.places[i];
            T *const data = p.kind == BPTT_ROWS ? static_cast<T *>(p.data) : arena.take<T>(storage(p));
            places[i] = p.kind == BPTT_PART  ? part_of(p)
                        : p.kind == BPTT_ROWS ? Place{data, p.row, OF_STEPS}
                        : Place{data, own_row(p), p.kind == BPTT_TEMPORARY ? OF_TILE : OF_SEQUENCES};
        }
        return true;
    }

    // Parts come after what they are parts of.
    Place part_of(const bptt_place &p) const {
        Place whole = places[p.whole];
        whole.data += p.offset;
        return whole;
    }

    int64_t most_rows() const { return (B + team() - 1) / team(); }
    int64_t packed_size(const bptt_weight &w) const { return paired<P>(w.depth) * round_up<T>(w.columns); }
    int64_t storage(const bptt_place &p) const {
        if (p.kind == BPTT_TEMPORARY) return q.threads * tile * own_row(p);
        return p.kind == BPTT_STATE || p.kind == BPTT_BETWEEN ? B * own_row(p) : 0;
    }

    void work(const Member &me) {
        for (int64_t i = 0; i < q.n_weights; i++) pack(me, q.weights[i], panels[i]);
        me.wait();
        const Range own = is_by_units() ? Range{0, B} : me.share(B);
        const Range columns = is_by_units() ? me.share(units, LINE) : Range{0, INT64_MAX};
        if (own.size() <= 0 || columns.size() <= 0) return;
        each_state([&](const bptt_place &p, const Place &state, int64_t) {
            const Range u = some(columns, p.width);
            for (int64_t b = own.begin; b < own.end; b++)
                std::copy_n(static_cast<const T *>(p.data) + b * p.width + u.begin, u.size(),
                            state.data + b * state.row + u.begin);
        });
        walk.each([&](int64_t, int64_t row, int64_t n) {
            const Range running{own.begin, std::min(own.end, n)};
            if (running.size() > 0) step(me, row, running, columns);
        });
        each_state([&](const bptt_place &p, const Place &state, int64_t) {
            const Range u = some(columns, p.width);
            for (int64_t b = own.begin; b < own.end; b++)
                std::copy_n(state.data + b * state.row + u.begin, u.size(),
                            static_cast<T *>(p.last) + b * p.width + u.begin);
        });
    }

    template <class Each> void each_state(Each each) const {
        int64_t number = 0;
        for (int64_t i = 0; i < q.n_places; i++)
            if (q.places[i].kind == BPTT_STATE) each(q.places[i], places[i], number++);
    }

    static void pack(const Member &me, const bptt_weight &w, const Panels<P> &to) {
        const T *const from = static_cast<const T *>(w.data);
        int64_t number = 0;
        to.walk([&](int64_t column, int wide, P *panel) {
            if (number++ % me.team != me.number) return;
            const int64_t width = std::min<int64_t>(wide * WIDTH<T>, to.columns - column);
            if (w.is_transposed) pack_transposed_panel(to, from, w.row, column, wide, panel);
            else pack_panel<P>(to.depth, [&](int64_t k) { return from + k * w.row; }, column, width, wide, panel);
        });
    }

    // A step of some columns of some sequences, whose first would be in this row.
    void step(const Member &me, int64_t row, const Range &running, const Range &columns) {
        each_state([&](const bptt_place &p, const Place &state, int64_t number) {
            const Range u = some(columns, p.width);
            for (int64_t b = running.begin; b < running.end; b++) {
                T *const at = state.data + b * state.row;
                if (q.zero_before && q.zero_before[row + b]) std::fill_n(at + u.begin, u.size(), T(0));
                if (q.norms) q.norms[(row + b) * q.states + number] = norm(at, p.width);
            }
        });
        for (int64_t i = 0; i < q.instructions;) {
            if (q.code[i].op == PRODUCT) {
                product(q.code[i++], row, running);
                continue;
            }
            const int64_t first = i;
            while (i < q.instructions && q.code[i].op != PRODUCT) i++;
            for (int64_t b = running.begin; b < running.end; b += tile)
                run_tile(me, row, {b, std::min(b + tile, running.end)}, columns, first, i);
        }
        if (!q.factors_after && !q.zero_after) return;
        each_state([&](const bptt_place &p, const Place &state, int64_t) {
            const Range u = some(columns, p.width);
            for (int64_t b = running.begin; b < running.end; b++) {
                T *const at = state.data + b * state.row + u.begin;
                const T factor = q.factors_after ? static_cast<const T *>(q.factors_after)[row + b] : T(1);
                if (factor == T(0) || (q.zero_after && q.zero_after[row + b])) std::fill_n(at, u.size(), T(0));
                else for (int64_t i = 0; i < u.size(); i++) at[i] *= factor;
            }
        });
    }

    static double norm(const T *x, int64_t n) {
        double sum = 0;
        for (int64_t u = 0; u < n; u++) sum += double(x[u]) * double(x[u]);
        return __builtin_sqrt(sum);
    }

    // Where a place begins for the sequences from b on, or for a tile of this member.
    T *at(const Member &me, int64_t place, int64_t row, int64_t b) const {
        const Place &p = places[place];
        return p.data + p.row * (p.rows == OF_STEPS ? row + b : p.rows == OF_SEQUENCES ? b : me.number * tile);
    }

    void product(const bptt_instruction &code, int64_t row, const Range &running) const {
        const Member nobody{0, 1, nullptr};  // no side of a product is a tile's
        const Panels<P> &right = panels[code.b];
        const int64_t n = running.size(), K = right.depth, from_row = places[code.a].row;
        const T *const from = at(nobody, code.a, row, running.begin);
        Left<P> left;
        if constexpr (IS_ROUNDED<P>) {
            P *const to = rounded + running.begin * rounded_row;
            round_rows<P>(n, 0, K, K, from, from_row, to, rounded_row);
            left = {to, rounded_row};
        } else left = {from, from_row};
        multiply<P>(n, K, left, right, at(nobody, code.to, row, running.begin), places[code.to].row,
                    code.c != 0);
    }

    void run_tile(const Member &me, int64_t row, const Range &rows, const Range &columns, int64_t first,
                  int64_t end) const {
        for (int64_t i = first; i < end; i++) {
            const bptt_instruction &code = q.code[i];
            Operands<T> of;
            const Range u = some(columns, q.places[code.to].width);
            of.rows = rows.size(), of.width = u.size();
            of.to = at(me, code.to, row, rows.begin) + u.begin, of.to_row = places[code.to].row;
            const int64_t from[] = {code.a, code.b, code.c};
            for (int k = 0; k < 3; k++) {
                if (from[k] < 0) continue;
                of.from[k] = at(me, from[k], row, rows.begin) + u.begin, of.row[k] = places[from[k]].row;
            }
            if (code.op < ELEMENTWISE) of.read = q.places[code.a].width;
            instructions<T>[code.op](of);
        }
    }
};

}  // namespace
