// The C interface: picks the instruction set, checks nothing (the caller has), and hands on.
#include <atomic>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "cells/list.h"
#include "instructions.h"
#include "isa.h"

namespace {

// Which instruction sets this build has kernels for, and whether the processor has them.
bool can_run(int isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == BPTT_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (isa == BPTT_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return isa == BPTT_PORTABLE;
}

int widest() {
    int isa = BPTT_ISAS - 1;
    while (!can_run(isa)) isa--;
    return isa;
}

bool can_run_bf16() {
#if defined(BPTT_HAS_BF16)
    return can_run(BPTT_AVX512) && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

std::atomic<int> chosen{-1};

const bptt_isa_table &table() {
    switch (bptt_isa_in_use()) {
#if defined(__x86_64__)
        case BPTT_AVX512: return bptt_avx512;
        case BPTT_AVX2: return bptt_avx2;
#endif
        default: return bptt_portable;
    }
}

// Those of a type, or null where it is none that the instruction set in use has.
const bptt_passes *passes(int64_t type) {
#if defined(BPTT_HAS_BF16)
    if (type == BPTT_BF16) return bptt_has_type(BPTT_BF16) ? &bptt_avx512_bf16 : nullptr;
#endif
    return bptt_has_type(type) ? &table().passes : nullptr;
}

bptt_threads threads = {nullptr, nullptr, nullptr};

// A forked child has its parent's memory but none of its threads.
void in_child() { threads.parallel = nullptr; }

}  // namespace

extern "C" {

int bptt_interface(void) { return BPTT_INTERFACE; }

int bptt_has_isa(int isa) { return isa >= 0 && isa < BPTT_ISAS && can_run(isa); }

int bptt_use_isa(int isa) {
    if (!bptt_has_isa(isa)) return -1;
    chosen = isa;
    return 0;
}

int bptt_isa_in_use(void) {
    int isa = chosen;
    if (isa < 0) chosen = isa = widest();
    return isa;
}

void bptt_use_threads(bptt_parallel parallel, bptt_number number, bptt_number count) {
#if !defined(_WIN32)
    static bool once = pthread_atfork(nullptr, nullptr, in_child) == 0;
    if (!once) return;
#endif
    threads = {parallel, number, count};
}

int bptt_has_type(int64_t type) {
    if (type == BPTT_BF16) return bptt_isa_in_use() == BPTT_AVX512 && can_run_bf16();
    return type == BPTT_FLOAT || type == BPTT_DOUBLE;
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

int64_t bptt_kept(int64_t cell, int64_t type, int64_t rows, int64_t hidden, int64_t projects) {
    const int64_t whole = type == BPTT_DOUBLE ? 8 : 16;
    const int64_t padded = (hidden + whole - 1) / whole * whole;
    return Cells::with<int64_t>(cell, BPTT_NO_CELL, [&](auto c) {
        using Cell = decltype(c);
        if (projects && !PROJECTS<Cell>) return int64_t(BPTT_NO_CELL);
        return rows * (KEPT<Cell> + (projects ? 1 : 0)) * padded;
    });
}

const char *bptt_instruction_name(int64_t op) {
    return op < 0 || op >= INSTRUCTIONS ? nullptr : instruction_names[op];
}

int bptt_forward(const bptt_sequence *q) {
    const bptt_passes *const of = passes(q->type);
    return of ? of->forward(*q, threads) : BPTT_NO_TYPE;
}

int bptt_backward(const bptt_sequence *q) {
    const bptt_passes *const of = passes(q->type);
    return of ? of->backward(*q, threads) : BPTT_NO_TYPE;
}

int bptt_run_loop(const bptt_loop *q) {
    const bptt_passes *const of = passes(q->type);
    return of ? of->run_loop(*q, threads) : BPTT_NO_TYPE;
}

int bptt_multiply(const bptt_product *q) {
    const bptt_passes *const of = passes(q->type);
    return of ? of->multiply(*q, threads) : BPTT_NO_TYPE;
}

int bptt_cross_entropy(const bptt_readout *q) {
    const bptt_passes *const of = passes(q->type);
    return of ? of->cross_entropy(*q, threads) : BPTT_NO_TYPE;
}

int bptt_flow_back(const bptt_flow_step *q) { return table().flow_back(*q, threads); }

int bptt_run_scan(const bptt_scan *q) { return table().run_scan(*q, threads); }

void bptt_function(int which, int64_t is_double, int64_t n, const void *in, void *out) {
    table().function(which, is_double, n, in, out);
}

double bptt_peak(int64_t type, int asked, double seconds) {
    const bptt_passes *const of = type == BPTT_DOUBLE ? nullptr : passes(type);
    return of ? of->peak(threads, asked, seconds) : BPTT_NO_TYPE;
}

}  // extern "C"
