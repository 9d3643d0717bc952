// What a loop's program may do with rows of numbers: each instruction on some rows, elementwise, or
// row by row. Their names are those by which Python asks for their numbers.
#pragma once
#include <cmath>
#include <cstdint>

#include "functions.h"

namespace {

enum : int64_t { PRODUCT, SUM, AMAX, SPREAD, GATHER, SCATTER, ELEMENTWISE };  // and all from there on

template <class T> struct Operands {
    int64_t rows, width, read;  // read: how many numbers the first operand has, where not `width`
    T *to;
    const T *from[3];
    int64_t to_row, row[3];  // from one row to the next
};

// to = f(from...), element by element.
template <class T, int N, class F> void elementwise(const Operands<T> &of, F f) {
    for (int64_t r = 0; r < of.rows; r++) {
        T *const to = of.to + r * of.to_row;
        const T *const a = of.from[0] + r * of.row[0];
        const T *const b = N > 1 ? of.from[1] + r * of.row[1] : nullptr;
        const T *const c = N > 2 ? of.from[2] + r * of.row[2] : nullptr;
        int64_t u = 0;
        for (; u + WIDTH<T> <= of.width; u += WIDTH<T>) {
            if constexpr (N == 1) store(to + u, f(load(a + u)));
            else if constexpr (N == 2) store(to + u, f(load(a + u), load(b + u)));
            else store(to + u, f(load(a + u), load(b + u), load(c + u)));
        }
        const int64_t left = of.width - u;
        if (!left) continue;
        if constexpr (N == 1) store(to + u, f(load(a + u, left)), left);
        else if constexpr (N == 2) store(to + u, f(load(a + u, left), load(b + u, left)), left);
        else store(to + u, f(load(a + u, left), load(b + u, left), load(c + u, left)), left);
    }
}

template <class T> V<T> select(typename Vector<T>::whole where, V<T> a, V<T> b) { return where ? a : b; }
template <class T> V<T> one_where(typename Vector<T>::whole where) { return where ? all<T>(1) : V<T>{}; }

// The sum of a row, which becomes each element of the result.
template <class T> void sum(const Operands<T> &of) {
    for (int64_t r = 0; r < of.rows; r++) {
        const T *const a = of.from[0] + r * of.row[0];
        V<T> sums{};
        for (int64_t u = 0; u < of.read; u += WIDTH<T>) sums += load(a + u, of.read - u);
        T total = 0;
        for (int i = 0; i < WIDTH<T>; i++) total += sums[i];
        std::fill_n(of.to + r * of.to_row, of.width, total);
    }
}

// The largest number of a row, likewise; NaN where there is one.
template <class T> void largest(const Operands<T> &of) {
    for (int64_t r = 0; r < of.rows; r++) {
        const T *const a = of.from[0] + r * of.row[0];
        T most = a[0];
        for (int64_t u = 1; u < of.read && most == most; u++)
            if (!(a[u] <= most)) most = a[u];
        std::fill_n(of.to + r * of.to_row, of.width, most);
    }
}

template <class T> void spread(const Operands<T> &of) {
    for (int64_t r = 0; r < of.rows; r++)
        std::fill_n(of.to + r * of.to_row, of.width, of.from[0][r * of.row[0]]);
}

// The numbers of a row at the places that b tells: whole numbers; NaN where there is no such place.
template <class T> void gather(const Operands<T> &of) {
    for (int64_t r = 0; r < of.rows; r++) {
        const T *const a = of.from[0] + r * of.row[0], *const b = of.from[1] + r * of.row[1];
        T *const to = of.to + r * of.to_row;
        for (int64_t u = 0; u < of.width; u++)
            to[u] = b[u] >= T(0) && b[u] < T(of.read) ? a[int64_t(b[u])] : T(NAN);
    }
}

// Their way back: each number of a is added where b tells, to zeros.
template <class T> void scatter(const Operands<T> &of) {
    for (int64_t r = 0; r < of.rows; r++) {
        const T *const a = of.from[0] + r * of.row[0], *const b = of.from[1] + r * of.row[1];
        T *const to = of.to + r * of.to_row;
        std::fill_n(to, of.width, T(0));
        for (int64_t u = 0; u < of.read; u++)
            if (b[u] >= T(0) && b[u] < T(of.width)) to[int64_t(b[u])] += a[u];
    }
}

// The remainder that has the sign of y, as Python's.
template <class T> T remainder_(T x, T y) {
    const T rest = std::fmod(x, y);
    return rest != T(0) && (y < T(0)) != (rest < T(0)) ? rest + y : rest;
}

// BPTT_INSTRUCTION(name, number of operands, what it gives for vectors a, b, c)
#define BPTT_INSTRUCTIONS                                                                          \
    BPTT_INSTRUCTION(copy, 1, a)                                                                   \
    BPTT_INSTRUCTION(neg, 1, -a)                                                                   \
    BPTT_INSTRUCTION(abs, 1, select<T>(a < T(0), -a, a + T(0)))                                    \
    BPTT_INSTRUCTION(sign, 1, one_where<T>(a > T(0)) - one_where<T>(a < T(0)))                     \
    BPTT_INSTRUCTION(reciprocal, 1, T(1) / a)                                                      \
    BPTT_INSTRUCTION(sqrt, 1, sqrt_<T>(a))                                                         \
    BPTT_INSTRUCTION(rsqrt, 1, T(1) / sqrt_<T>(a))                                                 \
    BPTT_INSTRUCTION(exp, 1, exp_<T>(a))                                                           \
    BPTT_INSTRUCTION(expm1, 1, expm1_<T>(a))                                                       \
    BPTT_INSTRUCTION(log, 1, log_<T>(a))                                                           \
    BPTT_INSTRUCTION(log1p, 1, log1p_<T>(a))                                                       \
    BPTT_INSTRUCTION(tanh, 1, tanh_<T>(a))                                                         \
    BPTT_INSTRUCTION(sigmoid, 1, sigmoid<T>(a))                                                    \
    BPTT_INSTRUCTION(relu, 1, select<T>(a < T(0), V<T>{}, a))                                      \
    BPTT_INSTRUCTION(sin, 1, each<T>(a, [](T x) { return std::sin(x); }))                          \
    BPTT_INSTRUCTION(cos, 1, each<T>(a, [](T x) { return std::cos(x); }))                          \
    BPTT_INSTRUCTION(erf, 1, each<T>(a, [](T x) { return std::erf(x); }))                          \
    BPTT_INSTRUCTION(floor, 1, each<T>(a, [](T x) { return std::floor(x); }))                      \
    BPTT_INSTRUCTION(round, 1, each<T>(a, [](T x) { return std::nearbyint(x); }))                  \
    BPTT_INSTRUCTION(atan, 1, each<T>(a, [](T x) { return std::atan(x); }))                        \
    BPTT_INSTRUCTION(logical_not, 1, one_where<T>(a == T(0)))                                      \
    BPTT_INSTRUCTION(add, 2, a + b)                                                                \
    BPTT_INSTRUCTION(sub, 2, a - b)                                                                \
    BPTT_INSTRUCTION(mul, 2, a * b)                                                                \
    BPTT_INSTRUCTION(div, 2, a / b)                                                                \
    BPTT_INSTRUCTION(maximum, 2, select<T>((a > b) | (a != a), a, b))                              \
    BPTT_INSTRUCTION(minimum, 2, select<T>((a < b) | (a != a), a, b))                              \
    BPTT_INSTRUCTION(pow, 2, each<T>(a, b, [](T x, T y) { return std::pow(x, y); }))               \
    BPTT_INSTRUCTION(fmod, 2, each<T>(a, b, [](T x, T y) { return std::fmod(x, y); }))             \
    BPTT_INSTRUCTION(remainder, 2, each<T>(a, b, remainder_<T>))                                   \
    BPTT_INSTRUCTION(lt, 2, one_where<T>(a < b))                                                   \
    BPTT_INSTRUCTION(le, 2, one_where<T>(a <= b))                                                  \
    BPTT_INSTRUCTION(gt, 2, one_where<T>(a > b))                                                   \
    BPTT_INSTRUCTION(ge, 2, one_where<T>(a >= b))                                                  \
    BPTT_INSTRUCTION(eq, 2, one_where<T>(a == b))                                                  \
    BPTT_INSTRUCTION(ne, 2, one_where<T>(a != b))                                                  \
    BPTT_INSTRUCTION(logical_and, 2, one_where<T>((a != T(0)) & (b != T(0))))                      \
    BPTT_INSTRUCTION(logical_or, 2, one_where<T>((a != T(0)) | (b != T(0))))                       \
    BPTT_INSTRUCTION(where, 3, select<T>(a != T(0), b, c))                                         \
    BPTT_INSTRUCTION(muladd, 3, a * b + c)

template <class T> using Instruction = void (*)(const Operands<T> &);

#define BPTT_OF_1 V<T> a
#define BPTT_OF_2 V<T> a, V<T> b
#define BPTT_OF_3 V<T> a, V<T> b, V<T> c
#define BPTT_INSTRUCTION(name, n, value)                                                           \
    [](const Operands<T> &of) { elementwise<T, n>(of, [](BPTT_OF_##n) -> V<T> { return value; }); },
template <class T> constexpr Instruction<T> instructions[] = {
    nullptr, sum<T>, largest<T>, spread<T>, gather<T>, scatter<T>, BPTT_INSTRUCTIONS};
#undef BPTT_INSTRUCTION

#define BPTT_INSTRUCTION(name, n, value) #name,
constexpr const char *instruction_names[] = {"product", "sum",     "amax",           "spread",
                                              "gather",  "scatter", BPTT_INSTRUCTIONS};
#undef BPTT_INSTRUCTION
constexpr int64_t INSTRUCTIONS = sizeof instruction_names / sizeof *instruction_names;

}  // namespace
