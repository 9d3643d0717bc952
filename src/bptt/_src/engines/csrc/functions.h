// More functions of vectors: those that only programs use.
#pragma once
#include <algorithm>

#include "vector.h"

namespace {

// f of each element, one after the other.
template <class T, class F> inline V<T> each(V<T> a, F f) {
    for (int i = 0; i < WIDTH<T>; i++) a[i] = f(a[i]);
    return a;
}
template <class T, class F> inline V<T> each(V<T> a, V<T> b, F f) {
    for (int i = 0; i < WIDTH<T>; i++) a[i] = f(a[i], b[i]);
    return a;
}

template <class T> inline V<T> sqrt_(V<T> x) {
    return each<T>(x, [](T one) -> T {
        if constexpr (sizeof(T) == 4) return __builtin_sqrtf(one);
        else return __builtin_sqrt(one);
    });
}

// e^x - 1, where nothing cancels: (e^x = 2^n (1 + part)).
template <class T> inline V<T> expm1_(V<T> x) {
    using C = Vector<T>;
    V<T> power;
    const V<T> inside = x > C::most ? all<T>(C::most) : x < C::least ? all<T>(C::least) : x;
    return split_exp<T>(inside, power) * power + (power - T(1));
}

// Σ z^k / (2k + 3), of log((1 + s) / (1 - s)) = 2 s + 2 s³ Σ, z = s².
template <class T> inline V<T> of_log(V<T> z) {
    constexpr int TERMS = sizeof(T) == 4 ? 5 : 10;
    V<T> sum = all<T>(T(1) / (2 * TERMS + 1));
    for (int k = TERMS - 2; k >= 0; k--) sum = sum * z + T(1) / (2 * k + 3);
    return sum;
}

// ln x, x = 2^e m, m from √½ to √2; of 0 it is -∞, of less NaN.
template <class T> inline V<T> log_(V<T> x) {
    using C = Vector<T>;
    using Whole = typename C::whole;
    constexpr T tiny = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
    constexpr T scale = sizeof(T) == 4 ? T(16777216) : T(18014398509481984);  // 2^24, 2^54
    constexpr int scaled = sizeof(T) == 4 ? 24 : 54;
    const Whole small = Whole(x < tiny);
    const V<T> y = small ? x * scale : x;
    Whole bits;
    std::memcpy(&bits, &y, sizeof bits);
    Whole exponent = (bits >> C::mantissa) - C::bias;
    bits = (bits & ((typename C::integer(1) << C::mantissa) - 1)) |
           (typename C::integer(C::bias) << C::mantissa);
    V<T> m;
    std::memcpy(&m, &bits, sizeof m);
    const Whole large = Whole(m > T(1.4142135623730951));
    m = large ? m * T(0.5) : m;
    exponent = exponent - large - (small & scaled);  // a condition that holds is -1
    const V<T> e = __builtin_convertvector(exponent, V<T>), f = m - T(1), s = f / (m + T(1));
    const V<T> z = s * s;
    // 2 s = f - f s
    const V<T> found = e * C::ln2 + (f - (s * (f - (z + z) * of_log<T>(z)) - e * C::rest));
    const V<T> infinite = all<T>(T(__builtin_inf())), none = all<T>(T(__builtin_nan("")));
    const V<T> defined = x == T(0) ? -infinite : x < T(0) ? none : found;
    return x == infinite ? infinite : x != x ? x : defined;
}

// ln(1 + x): the rounding of 1 + x is made good.
template <class T> inline V<T> log1p_(V<T> x) {
    const V<T> u = x + T(1), above = u - T(1);
    const V<T> found = log_<T>(u);
    const V<T> mended = found * (x / above);
    return above == T(0) ? x : (u == T(0)) | (above == u) ? found : mended;
}

}  // namespace
