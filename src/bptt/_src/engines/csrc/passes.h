// Whole calls, by the cell and by what products are made of.
#pragma once
#include <atomic>
#include <chrono>

#include "arena.h"
#include "backward.h"
#include "cells/list.h"
#include "forward.h"
#include "loop.h"
#include "product.h"
#include "readout.h"

namespace {

thread_local Arena arena;

template <class Work> int start(Work &&pass, const bptt_threads &threads) {
    if (!pass.reserve(arena)) return BPTT_NO_MEMORY;
    run(threads, pass.team(), [&](const Member &me) { pass.work(me); });
    return 0;
}

template <template <class, class> class Pass, class P>
int with_cell(const bptt_sequence &q, const bptt_threads &threads) {
    return Cells::with<int>(q.cell, BPTT_NO_CELL, [&](auto cell) {
        using Cell = decltype(cell);
        if (q.w_hr && !PROJECTS<Cell>) return int(BPTT_NO_CELL);
        return start(Pass<P, Cell>(q), threads);
    });
}

// How many operations a second, in billions, of a step of so many on each of as many independent
// sums as a tile has, all in registers.
template <class Step>
double gflops(const bptt_threads &threads, int asked, double seconds, int64_t operations, Step step) {
    using Clock = std::chrono::steady_clock;
    constexpr int64_t ROUNDS = 100000;
    std::atomic<int64_t> done{0};
    double taken = 0;
    run(threads, asked, [&](const Member &me) {
        V<float> sum[ACCUMULATORS];
        for (int i = 0; i < ACCUMULATORS; i++) sum[i] = all<float>(float(i));
        me.wait();
        const auto begun = Clock::now();
        double passed = 0;
        int64_t mine = 0;
        while (passed < seconds) {
            for (int64_t k = 0; k < ROUNDS; k++)
#pragma GCC unroll 32
                for (int i = 0; i < ACCUMULATORS; i++) step(sum[i]);
            mine += ROUNDS * ACCUMULATORS * operations;
            passed = std::chrono::duration<double>(Clock::now() - begun).count();
        }
        volatile float seen = 0;
        for (int i = 0; i < ACCUMULATORS; i++) seen = seen + sum[i][0];
        done += mine;
        me.wait();
        if (me.number == 0) taken = passed;
    });
    return double(done) / taken / 1e9;
}

}  // namespace
