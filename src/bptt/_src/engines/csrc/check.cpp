// A program of its own that runs the kernels, for the sanitizers: every cell, dtype and instruction
// set that this processor has, over shapes of all kinds. They must agree with each other, and any
// number of threads must give the same bits; whether they are right is for the tests in Python to
// say.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "check_problem.h"
#include "limit.h"

namespace {

const char *const ISAS[] = {"portable", "avx2", "avx512"};
constexpr int TEAM = 3;  // threads, where it is more than one

// ---------------------------------------------------------------------------------- comparing

// The largest difference, as a part of the largest number; infinite where one is no number.
template <class T> double difference(const std::vector<T> &a, const std::vector<T> &b) {
    double most = 0, scale = 1;
    for (size_t i = 0; i < a.size(); i++) {
        const double d = std::abs(double(a[i]) - double(b[i]));
        most = std::max(most, d <= HUGE_VAL ? d : HUGE_VAL);
        scale = std::max(scale, std::abs(double(b[i])));
    }
    return most / scale;
}

template <class T>
bool agree(const std::vector<Result<T>> &ours, const std::vector<Result<T>> &theirs,
           double tolerance, const char *what, size_t shape) {
    bool same = !ours.empty() && ours.size() == theirs.size();
    if (!same) std::printf("  shape %zu, %s: not done, or not the same y with kept\n", shape, what);
    for (size_t i = 0; same && i < ours.size(); i++) {
        const auto &a = ours[i].values, &b = theirs[i].values;
        const double off = difference(a, b);
        const bool equal = same_bits(a, b);
        if (tolerance == 0 ? equal : off <= tolerance) continue;
        std::printf("  shape %zu, %s: %s differs by %g\n", shape, what, ours[i].name, off);
        same = false;
    }
    return same;
}

// One cell and dtype: every instruction set there is with the first one, one thread with several.
template <class T> bool check(int64_t cell, bool bf16 = false) {
    const double tolerance = sizeof(T) == 8 ? 1e-11 : bf16 ? 0.05 : 1e-4;
    const auto all = shapes();
    bool same = true;
    for (size_t n = 0; n < all.size(); n++) {
        const Problem<T> problem(cell, all[n]), rounding(cell, all[n], BPTT_BF16);
        std::vector<Result<T>> first;
        for (int isa = 0; isa < BPTT_ISAS; isa++) {
            if (bptt_use_isa(isa) != 0) continue;
            char what[64];
            if (isa == 0) first = problem.run(1);
            if (bf16 && !bptt_has_type(BPTT_BF16)) continue;
            const auto run = [&](int threads) { return (bf16 ? rounding : problem).run(threads); };
            const auto alone = run(1);
            // A rectifier that is on or off by a rounding error makes another gradient.
            std::snprintf(what, sizeof what, "%s and %s", ISAS[isa], ISAS[0]);
            if (std::strcmp(bptt_cell_name(cell), "RNN_RELU") != 0 || sizeof(T) == 8)
                same = agree(alone, first, tolerance, what, n) && same;
            if (!(all[n].has & THREADS)) continue;
            std::snprintf(what, sizeof what, "%s, %d threads and 1", ISAS[isa], TEAM);
            const int before = teams;
            same = agree(run(TEAM), alone, 0, what, n) && same;
            if (teams == before + 3) continue;
            std::printf("  shape %zu, %s: too small for threads\n", n, what);
            same = false;
        }
    }
    std::printf("%s %s: %zu shapes %s\n", bptt_cell_name(cell),
                sizeof(T) == 8 ? "double" : bf16 ? "float, bf16" : "float", all.size(),
                same ? "agree" : "DIFFER");
    return same;
}

// What run(threads) gives: the instruction sets against each other, and threads against one.
template <class T, class Run> bool all_isas_agree(Run run) {
    bool same = true;
    std::vector<T> first;
    for (int isa = 0; isa < BPTT_ISAS; isa++) {
        if (bptt_use_isa(isa) != 0) continue;
        const auto alone = run(1);
        if (isa == 0) first = alone;
        same = same && !alone.empty() && alone.size() == first.size() &&
               difference(alone, first) < (sizeof(T) == 8 ? 1e-11 : 1e-4);
        same = same && same_bits(run(TEAM), alone);
    }
    return same;
}

template <class T> std::vector<T> normal(std::mt19937 &random, int64_t n) {
    std::normal_distribution<double> draw;
    std::vector<T> v(static_cast<size_t>(n));
    for (T &e : v) e = T(draw(random));
    return v;
}

}  // namespace

#include "check_programs.h"

namespace {

// The readout's loss.
template <class T> bool check_readout() {
    const int64_t shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {20, 9, 515}, {70, 33, 800}, {300, 3, 257}};
    bool same = true;
    for (const auto &[N, H, V] : shapes) {
        std::mt19937 random(1);
        auto draw = [&](int64_t n) { return normal<T>(random, n); };
        const auto hidden = draw(N * H), weight = draw(V * H), bias = draw(V), factors = draw(N);
        Numbers targets(static_cast<size_t>(N));
        for (int64_t &t : targets) t = int64_t(random() % uint64_t(V));
        auto compute = [&](int64_t type, int threads) {
            auto out = draw(N), d_h = draw(N * H), d_w = draw(V * H), d_b = draw(V);
            const bptt_readout q = {type,            threads,     N,          H,
                                    V,               hidden.data(), weight.data(), bias.data(),
                                    targets.data(),  factors.data(), out.data(), d_h.data(),
                                    d_w.data(),      d_b.data()};
            if (as_first([&] { return bptt_cross_entropy(&q); }) != 0) return std::vector<T>();
            for (const auto *more : {&d_h, &d_w, &d_b})
                out.insert(out.end(), more->begin(), more->end());
            return out;
        };
        const int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT;
        same = all_isas_agree<T>([&](int threads) { return compute(type, threads); }) && same;
        if (type == BPTT_DOUBLE || !bptt_has_type(BPTT_BF16)) continue;  // of the widest vectors
        const auto rounded = compute(BPTT_BF16, 1);
        same = difference(rounded, compute(type, 1)) < 0.02 && same;
        same = same_bits(compute(BPTT_BF16, TEAM), rounded) && same;
    }
    std::printf("readout, %s: %s\n", sizeof(T) == 8 ? "double" : "float",
                same ? "agree" : "DIFFER");
    return same;
}

// Losses on their way back through a step.
template <class T> bool check_flow() {
    struct Step {
        int64_t S, D, stride, I, H, P, gates;
        bool of_inputs, credit, resets;
    };
    const Step steps[] = {
        {1, 1, 1, 1, 1, 1, 1, false, false, false},     {2, 3, 5, 2, 7, 7, 1, true, false, true},
        {3, 9, 9, 5, 17, 17, 3, true, false, false},    {4, 130, 131, 3, 33, 33, 3, false, true, true},
        {2, 5, 6, 33, 15, 15, 4, true, false, false},   {5, 140, 140, 1, 49, 49, 4, false, true, false},
        {7, 20, 22, 18, 40, 9, 4, true, false, true},   {1, 300, 300, 70, 70, 70, 4, true, false, false},
    };
    bool same = true;
    for (const auto &[S, D, stride, I, H, P, gates, of_inputs, credit, resets] : steps) {
        std::mt19937 random(1);
        auto draw = [&](int64_t n) { return normal<T>(random, n); };
        const bool lstm = gates == 4, projection = H != P;
        const auto of_hidden = draw(S * gates * H), of_input = draw(S * gates * H);
        const auto c_to_m = draw(S * H), kept = draw(S * H), projected = draw(S * gates * H);
        const auto w_hh = draw(gates * H * P), w_ih = draw(gates * H * I), d_m = draw(S * D * H);
        // As long as is said: the last sequence's other losses are not there.
        const int64_t rows = (S - 1) * stride + D;
        const auto h = draw(rows * P), c = draw(rows * H);
        std::vector<uint8_t> flags(static_cast<size_t>(S));
        for (size_t i = 0; i < flags.size(); i++) flags[i] = i % 2 == 0;
        auto run = [&](int threads) {
            auto d_h = h, d_c = lstm ? c : std::vector<T>();
            auto d_x = std::vector<T>(size_t(of_inputs ? S * D * I : 0));
            std::vector<double> found(size_t(rows), 0), norms_h = found, norms_c = found;
            const int64_t blocks[] = {0, 1, 2, 3};
            const bptt_terms of_h = {lstm ? 3 : 0, lstm ? 1 : gates, blocks, of_hidden.data()};
            const bptt_terms of_x = {of_h.of_c, of_h.of_m, blocks, of_input.data()};
            const bptt_flow_step q = {
                sizeof(T) == 8, threads, S, D, I, H, P, lstm ? 2 : 1, stride, of_h, of_x,
                lstm ? c_to_m.data() : nullptr, gates == 3 ? kept.data() : nullptr,
                lstm ? kept.data() : nullptr, nullptr, nullptr, w_hh.data(),
                of_inputs ? w_ih.data() : nullptr, credit ? projected.data() : nullptr, gates,
                resets ? flags.data() : nullptr, projection ? d_m.data() : nullptr, d_h.data(),
                lstm ? d_c.data() : nullptr, of_inputs ? d_x.data() : nullptr,
                credit ? found.data() : nullptr, norms_h.data(), lstm ? norms_c.data() : nullptr};
            if (as_first([&] { return bptt_flow_back(&q); }) != 0) return std::vector<T>();
            for (const auto *more : {&d_c, &d_x}) d_h.insert(d_h.end(), more->begin(), more->end());
            for (const auto *more : {&found, &norms_h, &norms_c})
                for (double e : *more) d_h.push_back(T(e));
            return d_h;
        };
        same = all_isas_agree<T>(run) && same;
    }
    std::printf("flow, %s: %s\n", sizeof(T) == 8 ? "double" : "float", same ? "agree" : "DIFFER");
    return same;
}

// Calls at the same time, each with threads of its own.
bool check_callers() {
    const Problem<float> problem(number_of("GRU"), {times(8, 5), 9, 147});
    const auto expected = problem.run(1);
    bool same[2] = {true, true};
    auto call = [&](int n) {
        for (int i = 0; i < 5; i++)
            same[n] = agree(problem.run(2), expected, 0, "callers at the same time", 0) && same[n];
    };
    std::thread other(call, 1);
    call(0);
    other.join();
    std::printf("callers at the same time %s\n", same[0] && same[1] ? "agree" : "DIFFER");
    return same[0] && same[1];
}

// More threads than there are processors for them: each has to sleep while others run.
bool check_crowd() {
    constexpr int CROWD = 7;
    const Problem<float> problem(number_of("LSTM"), {times(3, 60), 5, 70});
    const auto expected = problem.run(1);
    bool same = true;
    std::thread([&] {
#if defined(__linux__)
        cpu_set_t own, one;
        sched_getaffinity(0, sizeof own, &own);
        int first = 0;
        while (!CPU_ISSET(first, &own)) first++;
        CPU_ZERO(&one);
        CPU_SET(first, &one);
        same = sched_setaffinity(0, sizeof one, &one) == 0;
#endif
        const int before = teams;
        same = agree(problem.run(CROWD), expected, 0, "a crowd of threads", 0) && same;
        same = teams == before + 3 && same;
    }).join();
    std::printf("%d threads on one processor %s\n", CROWD, same ? "agree" : "DIFFER");
    return same;
}

// When a team gets smaller and when it grows again.
bool check_limit() {
    constexpr int64_t MS = 1000000;
    Limit limit;
    // Calls of a millisecond each, in which a team of `late` threads waits for a part of the time.
    auto calls = [&](int number, int asked, int late, double waited) {
        int team = 0, tried = 0;
        for (int i = 0; i < number; i++) {
            team = limit.team(asked);
            tried += team == asked;
            limit.took(team, asked, MS, team == late ? int64_t(waited * MS) : 0);
        }
        return std::make_pair(team, tried);
    };
    const bool right[] = {
        calls(1000, 2, 2, 0.35).first == 2,  // as long as two are faster
        calls(30, 2, 2, 0.5).first == 2,     // for a moment
        calls(20, 2, 2, 0.0).first == 2,
        calls(30, 2, 2, 0.5).first == 2,     // and for another one
        calls(20, 2, 2, 0.0).first == 2,
        calls(60, 2, 2, 0.5).first == 1,     // half of the time is one thread's
        calls(80, 2, 2, 0.5).first == 1,
        calls(600, 2, 2, 0.0).first == 2,    // tried again
        calls(1000, 2, 2, 0.0).first == 2,
        calls(80, 4, 4, 0.3).first == 3,     // one of four is late: one less
        calls(20, 1, 1, 0.0).first == 1,
        calls(4000, 4, 4, 0.0).first == 4,
    };
    bool all = std::all_of(std::begin(right), std::end(right), [](bool r) { return r; });
    const int tried = calls(20000, 2, 2, 0.5).second;
    all = all && 50 < tried && tried < 800;  // in vain more and more seldom
    calls(4000, 2, 2, 0);
    limit.took(2, 2, 3600000 * MS, 3600000 * MS);  // the process was stopped for an hour
    all = all && calls(1, 2, 2, 0).first == 2;
    for (int i = 0; i < 3; i++) limit.took(2, 2, 3600000 * MS, 3600000 * MS);
    all = all && calls(9900, 2, 2, 0).first == 1 && calls(200, 2, 2, 0).first == 2;
    std::printf("the limit of threads %s\n", all ? "is right" : "is WRONG");
    return all;
}

// Numbers that no cell has are errors, and no cell is run in their place.
bool check_numbers() {
    bool right = bptt_cells() > 0;
    for (int64_t cell : {int64_t(-1), bptt_cells()}) {
        bptt_sequence q = {};
        int64_t sizes[4];
        q.cell = cell;
        right = right && !bptt_cell_name(cell) && bptt_cell_sizes(cell, sizes) == BPTT_NO_CELL &&
                bptt_kept(cell, 0, 3, 5, 0) == BPTT_NO_CELL && bptt_forward(&q) == BPTT_NO_CELL &&
                bptt_backward(&q) == BPTT_NO_CELL;
    }
    std::printf("numbers of no cell %s\n", right ? "are errors" : "are NOT errors");
    return right;
}

// The functions on as many elements as do and do not fill vectors, and the peak's threads.
template <class T> bool check_functions() {
    bool right = true;
    for (int isa = 0; isa < BPTT_ISAS; isa++) {
        if (bptt_use_isa(isa) != 0) continue;
        for (size_t n = 1; n < 40; n++) {
            std::vector<T> in(n, T(0.75)), out(n);
            for (int which = 0; which < 3; which++) {
                bptt_function(which, sizeof(T) == 8, int64_t(n), in.data(), out.data());
                const double expected = which == 0   ? std::exp(0.75)
                                        : which == 1 ? std::tanh(0.75)
                                                     : 1 / (1 + std::exp(-0.75));
                for (T e : out) right = right && std::abs(e - expected) < 1e-6;
            }
        }
        right = right && bptt_peak(BPTT_FLOAT, 2, 1e-3) > 0;
    }
    std::printf("functions of %s %s\n", sizeof(T) == 8 ? "double" : "float",
                right ? "agree" : "DIFFER");
    return right;
}

}  // namespace

int main() {
    bptt_use_threads(parallel, number, count);
    std::printf("instruction sets:");
    for (int isa = 0; isa < BPTT_ISAS; isa++)
        if (bptt_has_isa(isa)) std::printf(" %s", ISAS[isa]);
    std::printf("\n");
    bool same = true;
    for (int64_t cell = 0; cell < bptt_cells(); cell++)
        for (bool ok : {check<float>(cell), check<double>(cell), check<float>(cell, true)})
            same = same && ok;
    for (bool ok : {check_readout<float>(), check_readout<double>(), check_flow<float>(),
                    check_flow<double>(), check_numbers(), check_callers(), check_crowd(),
                    check_limit(), check_functions<float>(), check_functions<double>(),
                    check_programs<float>(), check_programs<double>()})
        same = same && ok;
    return same ? 0 : 1;
}
