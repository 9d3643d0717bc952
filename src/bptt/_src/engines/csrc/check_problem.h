// For check.cpp: threads, shapes at the borders of vectors, panels and blocks, and whole calls of a
// cell. All arrays are exactly as large as bptt_kernels.h says.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "bptt_kernels.h"

namespace {

struct CellSizes { int64_t gates, apart, states, units; };

CellSizes sizes_of(int64_t cell) {
    int64_t sizes[4];
    if (bptt_cell_sizes(cell, sizes) != 0) std::abort();
    return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

int64_t number_of(const char *name) {
    int64_t cell = 0;
    while (bptt_cell_name(cell) && std::strcmp(bptt_cell_name(cell), name) != 0) cell++;
    return cell;
}

// ------------------------------------------------------------------------------------ threads

thread_local int own_number = 0, own_count = 1;

int number() { return own_number; }
int count() { return own_count; }

std::atomic<int> teams{0};  // that were asked for

void parallel(void (*work)(void *), void *data, unsigned threads, unsigned) {
    teams++;
    auto as = [=](int n) {
        own_number = n;
        own_count = int(threads);
        work(data);
    };
    std::vector<std::thread> others;
    for (int n = 1; n < int(threads); n++) others.emplace_back(as, n);
    as(0);
    for (auto &other : others) other.join();
    own_number = 0;
    own_count = 1;
}

// A call from a thread that has made none yet, so that it has not learnt to take fewer threads.
template <class Call> int as_first(Call call) {
    int result = -1;
    std::thread([&] { result = call(); }).join();
    return result;
}

// ------------------------------------------------------------------------------------- shapes

enum Has : unsigned {
    BIAS = 1, D_Y = 2, D_X = 4, D_W_IH = 8, D_W_HH = 16, REVERSE = 32, CARRY = 64, RESETS = 128,
    WINDOWS = 256, BY_WINDOWS = 512, THREADS = 1024,
    USUAL = BIAS | D_Y | D_X | D_W_IH | D_W_HH,
};

using Numbers = std::vector<int64_t>;

struct Shape {
    Numbers lengths;  // of the sequences, longest first
    int64_t inputs, hidden;
    unsigned has = USUAL;
    int64_t every = 0, reach = 0;  // of the windows
    int64_t outputs = 0;           // of a projection, for the cells that have one
};

Numbers times(int64_t batch, int64_t length) { return Numbers(size_t(batch), length); }

std::vector<Shape> shapes() {
    const Numbers short_ones = {6, 5, 2, 1}, ragged = {3, 3, 3, 3, 2, 2, 2, 1, 1};
    return {
        {{1}, 1, 1},
        {times(3, 1), 2, 1},
        {times(3, 5), 1, 7, USUAL & ~BIAS},
        {short_ones, 5, 9, USUAL | CARRY},
        {short_ones, 16, 32, USUAL | REVERSE},
        {short_ones, 17, 33, USUAL | RESETS},
        {{300}, 3, 15, USUAL | RESETS | CARRY},
        {times(2, 3), 601, 14},
        {times(2, 2), 2, 265, USUAL | REVERSE},
        {ragged, 8, 16, USUAL | WINDOWS | RESETS | CARRY, 2, 5},
        // Not all gradients.
        {ragged, 5, 21, BIAS | D_X},
        {ragged, 5, 21, BIAS | D_Y | D_W_IH},
        {ragged, 5, 21, BIAS | D_Y | D_W_HH},
        {ragged, 5, 21, D_Y | WINDOWS, 2, 3},
        // With steps that are large enough for threads, ...
        {times(8, 2), 33, 147, USUAL | THREADS},
        {times(1, 2), 9, 401, USUAL | CARRY | REVERSE | THREADS},
        {ragged, 7, 146, USUAL | REVERSE | RESETS | CARRY | THREADS},
        {ragged, 40, 144, USUAL | WINDOWS | BY_WINDOWS | THREADS, 1, 2},
        {ragged, 19, 141, USUAL | WINDOWS | RESETS | CARRY | THREADS, 2, 3},
        {times(190, 3), 5, 33, USUAL | THREADS},
        {times(190, 3), 3, 29, USUAL | WINDOWS | THREADS, 2, 3},
        {short_ones, 5, 9, USUAL | RESETS | CARRY, 0, 0, 3},
        {ragged, 7, 146, USUAL | REVERSE | THREADS, 0, 0, 77},
        {ragged, 19, 141, USUAL | WINDOWS | RESETS | CARRY | THREADS, 2, 3, 150},
        // ... which have no units, or no inputs, some of them.
        {times(2000, 1), 1, 9, USUAL | RESETS | THREADS},
    };
}

// Where the windows' rows come from, step after step, the last step of each window first.
struct Layout {
    Numbers sizes, rows;

    Layout(const Shape &shape, const Numbers &running) {
        Numbers offsets = {0};
        for (int64_t n : running) offsets.push_back(offsets.back() + n);
        struct Window { int64_t sequence, since, last; };
        std::vector<Window> windows;
        for (size_t b = 0; b < shape.lengths.size(); b++)
            for (int64_t t = 0; t < shape.lengths[b]; t += shape.every)
                windows.push_back({int64_t(b), std::max<int64_t>(0, t + shape.every - shape.reach),
                                   std::min(t + shape.every, shape.lengths[b]) - 1});
        auto length = [](const Window &w) { return w.last - w.since + 1; };
        std::stable_sort(windows.begin(), windows.end(), [&](const Window &a, const Window &b) {
            return length(a) > length(b);
        });
        for (int64_t u = 0; u < length(windows[0]); u++) {
            int64_t n = 0;
            for (const Window &w : windows)
                if (u < length(w)) {
                    rows.push_back(offsets[size_t(w.last - u)] + w.sequence);
                    n++;
                }
            sizes.push_back(n);
        }
    }
};

// ---------------------------------------------------------------------------------- one problem

template <class T> bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T> struct Result {
    const char *name;
    std::vector<T> values;
};

template <class T> class Problem {
public:
    Problem(int64_t cell, const Shape &given, int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT)
        : shape(given), of_cell(sizes_of(cell)), gates(of_cell.gates) {
        for (int64_t t = 0; t < shape.lengths[0]; t++)
            sizes.push_back(std::count_if(shape.lengths.begin(), shape.lengths.end(),
                                          [t](int64_t n) { return n > t; }));
        const int64_t B = sizes[0], I = shape.inputs, H = shape.hidden;
        for (int64_t n : sizes) rows += n;
        walk_rows = rows, walk_batch = B;
        if (has(WINDOWS)) {
            Layout layout(shape, sizes);
            walk_sizes = layout.sizes;
            window_rows = layout.rows;
            walk_rows = int64_t(window_rows.size()), walk_batch = walk_sizes[0];
        }
        const bool projects = shape.outputs && bptt_kept(cell, type, 1, 1, 1) > 0;
        const int64_t O = projects ? shape.outputs : H;
        x = normal(rows * I);
        w_ih = normal(gates * H * I, 1 / std::sqrt(double(I)));
        w_hh = normal(gates * H * O, 1 / std::sqrt(double(O)));
        w_hr = normal(projects ? O * H : 0, 1 / std::sqrt(double(H)));
        b_ih = normal(has(BIAS) ? gates * H : 0), b_hh = normal(has(BIAS) ? gates * H : 0);
        units = normal(of_cell.units * H), d_y = normal(has(D_Y) ? walk_rows * O : 0),
        d_other = normal(has(D_Y) && of_cell.states > 1 ? walk_rows * H : 0);
        for (int64_t i = 0; i < of_cell.states; i++) {
            state_0[i] = normal(B * (i ? H : O)), d_state[i] = normal(walk_batch * (i ? H : O));
            q.state_0[i] = state_0[i].data();
        }
        for (int64_t n = 0; n < rows && has(RESETS); n++) resets.push_back(random() % 5 == 0);
        for (int64_t n = 0; n < rows && has(CARRY); n++) carry.push_back(T(random() % 4) / 2);
        q.cell = cell, q.type = type, q.reverse = has(REVERSE);
        q.steps = int64_t(sizes.size()), q.batch = B, q.inputs = I, q.hidden = H, q.rows = rows;
        q.outputs = O, q.w_hr = at(w_hr);
        q.sizes = sizes.data(), q.resets = at(resets), q.carry = at(carry);
        q.x = x.data(), q.w_ih = w_ih.data(), q.w_hh = w_hh.data();
        q.b_ih = at(b_ih), q.b_hh = at(b_hh), q.units = at(units);
        q.d_after[0] = at(d_y), q.d_after[1] = at(d_other), q.walk_steps = int64_t(walk_sizes.size());
        q.walk_sizes = at(walk_sizes), q.window_rows = at(window_rows);
        q.by_windows = has(BY_WINDOWS);
    }

    // Both passes on so many threads; all that comes of them.
    std::vector<Result<T>> run(int64_t threads) const {
        const int64_t B = q.batch, H = q.hidden, O = q.outputs, I = q.inputs;
        const int64_t of_bias = has(BIAS) ? gates * H : 0;
        bptt_sequence call = q;
        call.threads = threads;
        std::vector<T> kept(size_t(bptt_kept(q.cell, q.type, rows, H, q.w_hr != nullptr)), T(NAN));
        auto y = empty(rows * O), y_alone = y;
        std::vector<T> state_n[BPTT_STATES], d_states[BPTT_STATES];
        for (int64_t i = 0; i < of_cell.states; i++) {
            state_n[i] = empty(B * (i ? H : O)), d_states[i] = d_state[i];
            call.state_n[i] = state_n[i].data(), call.d_state[i] = d_states[i].data();
        }
        call.y = y_alone.data();
        auto succeeds = [&](int (*pass)(const bptt_sequence *)) {
            auto make = [&] { return pass(&call); };
            return (threads > 1 ? as_first(make) : make()) == 0;
        };
        bool done = succeeds(bptt_forward);
        call.y = y.data(), call.kept = at(kept);
        done = succeeds(bptt_forward) && done;

        auto dx = empty(!has(D_X) ? 0 : (has(BY_WINDOWS) ? walk_rows : rows) * I);
        auto dw_ih = empty(has(D_W_IH) ? gates * H * I : 0);
        auto dw_hh = empty(has(D_W_HH) ? gates * H * O : 0), dw_hr = empty(int64_t(w_hr.size()));
        auto db_ih = empty(of_bias), db_hh = empty(of_bias), d_units = empty(of_cell.units * H);
        std::vector<double> row_norms(size_t(walk_rows * of_cell.states), NAN);
        call.d_x = at(dx), call.d_units = at(d_units);
        call.d_w_ih = at(dw_ih), call.d_w_hh = at(dw_hh), call.d_w_hr = at(dw_hr);
        call.d_b_ih = at(db_ih), call.d_b_hh = at(db_hh);
        call.row_norms = row_norms.data();
        done = succeeds(bptt_backward) && done;
        if (!done) return {};
        if (!same_bits(y, y_alone)) return {};
        return {{"y", y}, {"h_n", state_n[0]}, {"c_n", state_n[1]}, {"d_h", d_states[0]},
                {"d_c", d_states[1]}, {"d_x", dx}, {"d_units", d_units},
                {"d_w_ih", dw_ih}, {"d_w_hh", dw_hh}, {"d_w_hr", dw_hr}, {"d_b_ih", db_ih}, {"d_b_hh", db_hh},
                {"row_norms", {row_norms.begin(), row_norms.end()}}};
    }

private:
    Shape shape;
    CellSizes of_cell;
    int64_t gates, rows = 0, walk_rows, walk_batch;
    std::mt19937 random;
    Numbers sizes, walk_sizes, window_rows;
    std::vector<T> x, w_ih, w_hh, w_hr, b_ih, b_hh, units, carry, d_y, d_other;
    std::vector<T> state_0[BPTT_STATES], d_state[BPTT_STATES];
    std::vector<uint8_t> resets;
    bptt_sequence q = {};

    bool has(Has what) const { return shape.has & what; }
    template <class E> static E *at(std::vector<E> &v) { return v.empty() ? nullptr : v.data(); }
    static std::vector<T> empty(int64_t n) { return std::vector<T>(size_t(n), T(NAN)); }
    std::vector<T> normal(int64_t n, double scale = 1) {
        std::normal_distribution<double> draw(0, scale);
        std::vector<T> v(static_cast<size_t>(n));
        for (T &e : v) e = T(draw(random));
        return v;
    }
};

}  // namespace
