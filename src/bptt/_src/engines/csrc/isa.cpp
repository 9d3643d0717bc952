// All kernels for one kind of vectors. Compiled once for each ISA, with BPTT_ISA its name and the
// compiler's flags to match; everything stays inside this file but the table at its end.
#include "isa.h"

#include "flow.h"
#include "passes.h"
#include "scan.h"

namespace {

template <template <class, class> class Pass>
int with_type(const bptt_sequence &q, const bptt_threads &threads) {
    return q.type == BPTT_DOUBLE ? with_cell<Pass, double>(q, threads)
                                 : with_cell<Pass, float>(q, threads);
}

int forward(const bptt_sequence &q, const bptt_threads &threads) {
    return with_type<Forward>(q, threads);
}

int backward(const bptt_sequence &q, const bptt_threads &threads) {
    return with_type<Backward>(q, threads);
}

int run_loop(const bptt_loop &q, const bptt_threads &threads) {
    return q.type == BPTT_DOUBLE ? start(Loop<double>(q), threads) : start(Loop<float>(q), threads);
}

int multiply(const bptt_product &q, const bptt_threads &threads) {
    return q.type == BPTT_DOUBLE ? start(Product<double>(q), threads)
                                 : start(Product<float>(q), threads);
}

int cross_entropy(const bptt_readout &q, const bptt_threads &threads) {
    return q.type == BPTT_DOUBLE ? start(Readout<double>(q), threads)
                                 : start(Readout<float>(q), threads);
}

int flow_back(const bptt_flow_step &q, const bptt_threads &threads) {
    return q.is_double ? start(FlowStep<double>(q), threads) : start(FlowStep<float>(q), threads);
}

template <class T> int scan_of(const bptt_scan &q, const bptt_threads &threads) {
    return q.is_complex ? start(Scan<Complex<T>>(q), threads) : start(Scan<T>(q), threads);
}

int run_scan(const bptt_scan &q, const bptt_threads &threads) {
    return q.type == BPTT_DOUBLE ? scan_of<double>(q, threads) : scan_of<float>(q, threads);
}

template <class T> void function(int which, int64_t n, const T *in, T *out) {
    for (int64_t i = 0; i < n; i += WIDTH<T>) {
        const V<T> x = load(in + i, n - i);
        store(out + i, which == 0 ? exp_<T>(x) : which == 1 ? tanh_<T>(x) : sigmoid<T>(x), n - i);
    }
}

void function_of(int which, int64_t is_double, int64_t n, const void *in, void *out) {
    if (is_double) function(which, n, static_cast<const double *>(in), static_cast<double *>(out));
    else function(which, n, static_cast<const float *>(in), static_cast<float *>(out));
}

double peak(const bptt_threads &threads, int asked, double seconds) {
    const V<float> a = all<float>(0.999f), b = all<float>(0.001f);
    return gflops(threads, asked, seconds, 2 * WIDTH<float>, [=](V<float> &sum) { sum = sum * a + b; });
}

}  // namespace

#define BPTT_JOIN(a, b) a##b
#define BPTT_NAME(isa) BPTT_JOIN(bptt_, isa)
extern const bptt_isa_table BPTT_NAME(BPTT_ISA) = {
    {forward, backward, run_loop, multiply, cross_entropy, peak}, flow_back, run_scan, function_of};
