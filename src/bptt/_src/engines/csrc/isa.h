// What the kernels for one instruction set offer to the dispatch; all else is their own.
#pragma once
#include "bptt_kernels.h"

// Where threads come from.
struct bptt_threads {
    bptt_parallel parallel;
    bptt_number number, count;
};

struct bptt_passes {
    int (*forward)(const bptt_sequence &, const bptt_threads &);
    int (*backward)(const bptt_sequence &, const bptt_threads &);
    int (*run_loop)(const bptt_loop &, const bptt_threads &);
    int (*multiply)(const bptt_product &, const bptt_threads &);
    int (*cross_entropy)(const bptt_readout &, const bptt_threads &);
    double (*peak)(const bptt_threads &, int asked, double seconds);
};

struct bptt_isa_table {
    bptt_passes passes;  // in float and double
    int (*flow_back)(const bptt_flow_step &, const bptt_threads &);
    int (*run_scan)(const bptt_scan &, const bptt_threads &);
    void (*function)(int which, int64_t is_double, int64_t n, const void *in, void *out);
};

extern const bptt_isa_table bptt_portable, bptt_avx2, bptt_avx512;
extern const bptt_passes bptt_avx512_bf16;  // beside bptt_avx512
