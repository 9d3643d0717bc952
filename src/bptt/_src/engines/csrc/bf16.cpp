// The passes whose products are of bfloat16, for processors that multiply it.
#include "isa.h"

#include "passes.h"

namespace {

// Of few rows nothing is packed, and to round would cost more than it saves.
bool is_worth_it(int64_t rows) { return rows > FEW; }

int forward(const bptt_sequence &q, const bptt_threads &threads) {
    if (!is_worth_it(q.rows)) return bptt_avx512.passes.forward(q, threads);
    return with_cell<Forward, Bf16>(q, threads);
}

int backward(const bptt_sequence &q, const bptt_threads &threads) {
    if (!is_worth_it(q.rows)) return bptt_avx512.passes.backward(q, threads);
    return with_cell<Backward, Bf16>(q, threads);
}

int run_loop(const bptt_loop &q, const bptt_threads &threads) {
    return start(Loop<Bf16>(q), threads);
}

int multiply(const bptt_product &q, const bptt_threads &threads) {
    return start(Product<Bf16>(q), threads);
}

int cross_entropy(const bptt_readout &q, const bptt_threads &threads) {
    if (!is_worth_it(q.rows)) return bptt_avx512.passes.cross_entropy(q, threads);
    return start(Readout<Bf16>(q), threads);
}

double peak(const bptt_threads &threads, int asked, double seconds) {
    const Word<Bf16> a = Word<Bf16>(all<float>(0.5f)), b = Word<Bf16>(all<float>(0.001f));
    return gflops(threads, asked, seconds, 4 * WIDTH<float>,
                  [=](V<float> &sum) { Operand<Bf16>::add_product(sum, a, b); });
}

}  // namespace

extern const bptt_passes bptt_avx512_bf16 = {forward, backward, run_loop, multiply, cross_entropy, peak};
