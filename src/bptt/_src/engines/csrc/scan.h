// A linear recurrence whose columns are independent, h_t = a_t h_{t-1} + b_t, as bptt_kernels.h has
// it. Columns are divided among the threads; where there are few, time is.
//
// Of a chunk of time, two numbers of each column say what it makes of the state before it: the
// product of all a_t, and what comes of the state 0. Those of all chunks, then the states between
// them, one after the other, then all chunks again from their states. Where the chunks begin depends
// on the sizes alone, so that the bits do not depend on the number of threads.
#pragma once
#include "arena.h"
#include "team.h"

namespace {

template <class T> struct Complex {
    T re, im;
};

template <class T> T one(T) { return 1; }
template <class T> Complex<T> one(Complex<T>) { return {1, 0}; }

// a h + b; back in time, with the conjugate of a.
template <class T> T advanced(T a, T h, T b, bool) { return a * h + b; }
template <class T> Complex<T> advanced(Complex<T> a, Complex<T> h, Complex<T> b, bool conjugate) {
    const T im = conjugate ? -a.im : a.im;
    return {a.re * h.re - im * h.im + b.re, a.re * h.im + im * h.re + b.im};
}

template <class N> struct Scan {
    const bptt_scan &q;
    const int64_t T = q.steps, C = q.columns;
    const bool back = q.reverse != 0;
    static constexpr int64_t CHUNK = 1024;              // steps
    static constexpr int64_t BLOCK = 128 / sizeof(N);   // columns, whose states stay in registers
    static constexpr int64_t FEW = 2;                   // columns where time is divided
    static constexpr int64_t TOGETHER = 4;              // chunks: none waits for another's sum
    static constexpr int64_t SMALL = 20000;             // numbers that are worth no second thread
    const int64_t chunks = C <= FEW && T >= 2 * CHUNK ? (T + CHUNK - 1) / CHUNK : 1;
    N *before;    // the states before the chunks, [chunks, C]
    N *product;   // of each chunk, [chunks, C]

    explicit Scan(const bptt_scan &scan) : q(scan) {}

    int team() const {
        const int64_t parts = chunks > 1 ? (chunks + TOGETHER - 1) / TOGETHER : (C + BLOCK - 1) / BLOCK;
        return T * C < SMALL ? 1 : int(std::min(q.threads, parts));
    }

    bool reserve(Arena &arena) {
        if (!arena.reserve(2 * Arena::size_of<N>(chunks * C))) return false;
        before = arena.take<N>(chunks * C), product = arena.take<N>(chunks * C);
        return true;
    }

    void work(const Member &me) {
        if (chunks == 1) {
            const Range own = me.share(C, BLOCK);
            for (int64_t c = own.begin; c < own.end; c += BLOCK) whole(c, std::min(BLOCK, own.end - c));
            return;
        }
        const Range own = me.share(chunks, TOGETHER);
        for (int64_t k = own.begin; k < own.end; k += TOGETHER) summarise(k, std::min(k + TOGETHER, chunks));
        me.wait();
        if (me.number == 0) link();
        me.wait();
        for (int64_t k = own.begin; k < own.end; k += TOGETHER) run(k, std::min(k + TOGETHER, chunks));
    }

    const N *a() const { return static_cast<const N *>(q.a); }
    const N *b() const { return static_cast<const N *>(q.b); }
    N first(int64_t c) const { return q.first ? static_cast<const N *>(q.first)[c] : N{}; }

    // The row of the i-th step, and that of its a: back in time, of the step that was before.
    int64_t row(int64_t i) const { return (back ? T - 1 - i : i) * C; }
    int64_t row_of_a(int64_t i) const { return (back ? T - i : i) * C; }

    N step(N h, int64_t i, int64_t c) const {
        const N more = b()[row(i) + c];
        return back && i == 0 ? more : advanced(a()[row_of_a(i) + c], h, more, back);
    }

    void whole(int64_t c, int64_t n) const {
        if (n == BLOCK) columns(c, [] { return BLOCK; });
        else columns(c, [n] { return n; });
    }

    template <class Number> void columns(int64_t c, Number number) const {
        N h[BLOCK];
        const int64_t n = number();
        N *const to = static_cast<N *>(q.to) + c;
        for (int64_t u = 0; u < n; u++) to[row(0) + u] = h[u] = step(first(c + u), 0, c + u);
        for (int64_t i = 1; i < T; i++) {
            const N *const a_i = a() + row_of_a(i) + c, *const b_i = b() + row(i) + c;
            N *const to_i = to + row(i);
            for (int64_t u = 0; u < n; u++) h[u] = advanced(a_i[u], h[u], b_i[u], back);
            for (int64_t u = 0; u < n; u++) to_i[u] = h[u];
        }
    }

    // What each of some chunks makes of the state before it.
    void summarise(int64_t k, int64_t to) {
        N h[TOGETHER][FEW] = {}, p[TOGETHER][FEW];
        for (auto &of_chunk : p)
            for (N &x : of_chunk) x = one(N{});
        each(k, to, [&](int64_t j, int64_t at) {
            for (int64_t c = 0; c < C; c++) {
                h[j][c] = step(h[j][c], at, c);
                if (at > 0 || !back) p[j][c] = advanced(a()[row_of_a(at) + c], p[j][c], N{}, back);
            }
        });
        for (int64_t j = k; j < to; j++)
            for (int64_t c = 0; c < C; c++)
                before[j * C + c] = h[j - k][c], product[j * C + c] = p[j - k][c];
    }

    // For the steps of some chunks, side by side: each(the chunk's number among them, the step).
    template <class Each> void each(int64_t k, int64_t to, Each each) const {
        for (int64_t i = 0; i < CHUNK; i++)
            for (int64_t j = k; j < to && j * CHUNK + i < T; j++) each(j - k, j * CHUNK + i);
    }

    void link() {
        for (int64_t c = 0; c < C; c++) {
            N h = first(c);
            for (int64_t k = 0; k < chunks; k++) {
                const N own = before[k * C + c];
                before[k * C + c] = h;
                h = k == 0 && back ? own : advanced(product[k * C + c], h, own, false);
            }
        }
    }

    void run(int64_t k, int64_t to) const {
        N *const out = static_cast<N *>(q.to);
        N h[TOGETHER][FEW];
        for (int64_t j = k; j < to; j++)
            for (int64_t c = 0; c < C; c++) h[j - k][c] = before[j * C + c];
        each(k, to, [&](int64_t j, int64_t at) {
            for (int64_t c = 0; c < C; c++) out[row(at) + c] = h[j][c] = step(h[j][c], at, c);
        });
    }
};

}  // namespace
