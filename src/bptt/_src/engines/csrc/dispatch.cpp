// The C interface: picks the path, checks nothing (the caller has), and hands on.
#include <atomic>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "cells/list.h"
#include "path.h"

namespace {

// Which paths this build has, and whether the processor can run them.
bool can_run(int path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (path == BPTT_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (path == BPTT_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return path == BPTT_PORTABLE;
}

int widest() {
    int path = BPTT_PATHS - 1;
    while (!can_run(path)) path--;
    return path;
}

std::atomic<int> chosen{-1};

const bptt_path_table &table() {
    switch (bptt_path_in_use()) {
#if defined(__x86_64__)
        case BPTT_AVX512: return bptt_avx512;
        case BPTT_AVX2: return bptt_avx2;
#endif
        default: return bptt_portable;
    }
}

bptt_threads threads = {nullptr, nullptr, nullptr};

// A forked child has its parent's memory but none of its threads.
void in_child() { threads.parallel = nullptr; }

}  // namespace

extern "C" {

int bptt_interface(void) { return BPTT_INTERFACE; }

int bptt_has_path(int path) { return path >= 0 && path < BPTT_PATHS && can_run(path); }

int bptt_use_path(int path) {
    if (!bptt_has_path(path)) return -1;
    chosen = path;
    return 0;
}

int bptt_path_in_use(void) {
    int path = chosen;
    if (path < 0) chosen = path = widest();
    return path;
}

void bptt_use_threads(bptt_parallel parallel, bptt_number number, bptt_number count) {
#if !defined(_WIN32)
    static bool once = pthread_atfork(nullptr, nullptr, in_child) == 0;
    if (!once) return;
#endif
    threads = {parallel, number, count};
}

int64_t bptt_cells(void) { return Cells::SIZE; }

const char *bptt_cell_name(int64_t cell) {
    return Cells::with<const char *>(cell, nullptr, [](auto c) { return decltype(c)::NAME; });
}

int bptt_cell_sizes(int64_t cell, int64_t sizes[4]) {
    return Cells::with<int>(cell, BPTT_NO_CELL, [&](auto c) {
        using Cell = decltype(c);
        sizes[0] = Cell::GATES, sizes[1] = Cell::APART, sizes[2] = Cell::STATES;
        sizes[3] = Cell::UNITS;
        return 0;
    });
}

int64_t bptt_kept(int64_t cell, int64_t is_double, int64_t rows, int64_t hidden) {
    const int64_t whole = is_double ? 8 : 16;
    const int64_t padded = (hidden + whole - 1) / whole * whole;
    return Cells::with<int64_t>(cell, BPTT_NO_CELL,
                                [&](auto c) { return rows * KEPT<decltype(c)> * padded; });
}

int bptt_forward(const bptt_sequence *q) { return table().forward(*q, threads); }

int bptt_backward(const bptt_sequence *q) { return table().backward(*q, threads); }

int bptt_cross_entropy(const bptt_readout *q) { return table().cross_entropy(*q, threads); }

int bptt_flow_back(const bptt_flow_step *q) { return table().flow_back(*q, threads); }

void bptt_function(int which, int64_t is_double, int64_t n, const void *in, void *out) {
    table().function(which, is_double, n, in, out);
}

double bptt_peak(int team, double seconds) { return table().peak(threads, team, seconds); }

}  // extern "C"
