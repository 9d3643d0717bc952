// One large product C = A B, of rows that all steps have together: the threads share C's columns,
// or its rows where it has more of them. Each element is summed over k in order, so that it has the
// same bits for any number of threads.
#pragma once
#include "arena.h"
#include "matrix.h"
#include "sequence.h"
#include "team.h"

namespace {

constexpr int64_t SMALL_PRODUCT = 100000;  // multiplications that are not worth a second thread
constexpr int64_t DEEP = 512;              // rows of B that are packed at a time

template <class P> struct Product {
    using T = Sum<P>;
    const bptt_product &q;
    const int64_t M = q.rows, K = q.depth, N = q.columns;
    const T *const a = static_cast<const T *>(q.a), *const b = static_cast<const T *>(q.b);
    const T *const bias = static_cast<const T *>(q.bias);
    T *const c = static_cast<T *>(q.c);
    // Whether k goes over all of B at once; with Aᵀ it is long, and is cut.
    const int64_t deep = q.of_a ? std::min(K, DEEP) : K;
    P *panels, *left, *rounded;

    explicit Product(const bptt_product &product) : q(product) {}

    int team() const { return M * K * N < SMALL_PRODUCT ? 1 : int(q.threads); }

    bool reserve(Arena &arena) {
        const int64_t sizes[] = {
            paired<P>(deep) * round_up<T>(N),                              // panels
            q.of_a ? paired<P>(deep) * M : 0,                              // left
            !IS_ROUNDED<P> ? 0 : q.of_a ? deep * M : M * paired<P>(K),     // rounded
        };
        P **places[] = {&panels, &left, &rounded};
        if (!arena.reserve(Arena::size_of(sizes, places))) return false;
        arena.take(sizes, places);
        return true;
    }

    void work(const Member &me) {
        const Range own = me.share(M, MOST_ROWS);
        for (int64_t k = 0; k < K || k == 0; k += deep) {
            const int64_t n = std::min(deep, K - k);
            const Panels<P> right{panels, n, N, widest_panel(MOST_ROWS)};
            pack(me, right, k);
            const Left<P> from = left_side(me, own, k, n, right.widest);
            me.wait();
            T *const to = c + own.begin * N;
            if (own.size() > 0) multiply<P>(own.size(), n, from, right, to, N, k > 0);
            me.wait();  // the panels' place is used again
            if (k + deep >= K) break;
        }
        for (int64_t r = own.begin; bias && r < own.end; r++)
            for (int64_t j = 0; j < N; j += WIDTH<T>)
                store(c + r * N + j, load(c + r * N + j, N - j) + load(bias + j, N - j), N - j);
    }

    void pack(const Member &me, const Panels<P> &right, int64_t k) {
        if (!q.of_b) {
            pack_share<P>(me, right, [&](int64_t i) { return b + (k + i) * N; });
            return;
        }
        int64_t number = 0;
        right.walk([&](int64_t column, int wide, P *panel) {
            if (number++ % me.team == me.number)
                pack_transposed_panel(right, b + k, K, column, wide, panel);
        });
    }

    // This member's rows of A, for some k.
    Left<P> left_side(const Member &, const Range &own, int64_t k, int64_t n, int widest) {
        if (!q.of_a) {
            if constexpr (!IS_ROUNDED<P>) return {a + own.begin * K, K};
            P *const to = rounded + own.begin * paired<P>(K);
            round_rows<P>(own.size(), 0, K, K, a + own.begin * K, K, to, paired<P>(K));
            return {to, paired<P>(K)};
        }
        P *const to = left + own.begin * paired<P>(n);
        if constexpr (IS_ROUNDED<P>) {
            for (int64_t i = 0; i < n; i++)
                for (int64_t m = own.begin; m < own.end; m += WIDTH<T>)
                    Operand<P>::store_row(rounded + i * M + m, load(a + (k + i) * M + m, own.end - m),
                                          own.end - m);
            pack_slivers(own.size(), n, rounded + own.begin, M, widest, to);
        } else pack_slivers(own.size(), n, a + k * M + own.begin, M, widest, to);
        return {to, 0};
    }
};

}  // namespace
