// Vectors of one register, by the compiler's own extensions (gcc, clang), and functions on them.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BPTT_BYTES 64
#define BPTT_REGISTERS 32
#elif defined(__AVX2__)
#define BPTT_BYTES 32
#define BPTT_REGISTERS 16
#else
#define BPTT_BYTES 16
#if defined(__aarch64__)
#define BPTT_REGISTERS 32
#else
#define BPTT_REGISTERS 16
#endif
#endif

namespace {

using std::int32_t;
using std::int64_t;

template <class T> struct Vector;

template <> struct Vector<float> {
    typedef float type __attribute__((vector_size(BPTT_BYTES)));
    typedef int32_t whole __attribute__((vector_size(BPTT_BYTES)));
    typedef int32_t integer;
    static constexpr int bias = 127, mantissa = 23;  // of the bits of a number
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float most = 89.0f, least = -87.0f;  // of exp
    static constexpr float flat = 10.0f;                  // tanh is 1 from here on
    // log 2 in two parts; n times the first is exact.
    static constexpr float log2e = 1.44269504f, ln2 = 0.693145751953125f, rest = 1.42860682e-6f;
};

template <> struct Vector<double> {
    typedef double type __attribute__((vector_size(BPTT_BYTES)));
    typedef int64_t whole __attribute__((vector_size(BPTT_BYTES)));
    typedef int64_t integer;
    static constexpr int bias = 1023, mantissa = 52;
    static constexpr double round = 6755399441055744.0;
    static constexpr double most = 710.0, least = -708.0, flat = 20.0;
    static constexpr double log2e = 1.4426950408889634074, ln2 = 0.693147180601954460144043,
                            rest = -4.2009150726810847292e-11;
};

template <class T> using V = typename Vector<T>::type;
template <class T> constexpr int WIDTH = BPTT_BYTES / sizeof(T);

template <class T> inline V<T> load(const T *p) {
    V<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T> inline void store(T *p, V<T> v) { std::memcpy(p, &v, sizeof v); }

// The first n elements, where fewer than a whole vector are left; the rest are zero.
#if defined(__AVX512F__)
inline __mmask16 first_of(int64_t n) { return __mmask16(n > 0 ? (1u << n) - 1 : 0); }
inline V<float> some_of(const float *p, int64_t n) {
    return V<float>(_mm512_maskz_loadu_ps(first_of(n), p));
}
inline V<double> some_of(const double *p, int64_t n) {
    return V<double>(_mm512_maskz_loadu_pd(__mmask8(first_of(n)), p));
}
inline void put_some(float *p, V<float> v, int64_t n) {
    _mm512_mask_storeu_ps(p, first_of(n), __m512(v));
}
inline void put_some(double *p, V<double> v, int64_t n) {
    _mm512_mask_storeu_pd(p, __mmask8(first_of(n)), __m512d(v));
}
template <class T> inline V<T> load(const T *p, int64_t n) {
    return n >= WIDTH<T> ? load(p) : some_of(p, n);
}
template <class T> inline void store(T *p, V<T> v, int64_t n) {
    if (n >= WIDTH<T>) store(p, v);
    else put_some(p, v, n);
}
#else
template <class T> inline V<T> load(const T *p, int64_t n) {
    if (n >= WIDTH<T>) return load(p);
    T some[WIDTH<T>] = {};
    for (int64_t i = 0; i < n; i++) some[i] = p[i];
    return load(some);
}
template <class T> inline void store(T *p, V<T> v, int64_t n) {
    if (n >= WIDTH<T>) return store(p, v);
    T some[WIDTH<T>];
    store(some, v);
    for (int64_t i = 0; i < n; i++) p[i] = some[i];
}
#endif

template <class T> inline V<T> all(T x) { return x - V<T>{}; }

// x, rounded before it is added to anything: with AVX-512 it becomes no part of a fused operation.
// What a compiler makes of a sum depends on the code around it; this keeps the bits as they are.
template <class T> inline V<T> rounded(V<T> x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

// (e^r - 1 - r) / r² for |r| <= ln 2 / 2, by Chebyshev interpolation; its part of e^r has an error
// below half a unit in the last place.
template <class T> struct Coefficients;
template <> struct Coefficients<float> {
    static constexpr float exp[] = {0.5f, 0.16666577026f, 0.041666554662f, 0.0083631730745f,
                                    0.001392617612f};
};
template <> struct Coefficients<double> {
    static constexpr double exp[] = {
        0.50000000000000010211,   0.16666666666666667452,   0.041666666666624161903,
        0.0083333333333300644495, 0.0013888888917196719077, 0.00019841269863040545271,
        2.4801521322368693266e-5, 2.7557268480310025526e-6, 2.7620075879983366586e-7,
        2.5100375832561233664e-8};
};

template <class T, int N> inline V<T> polynomial(const T (&c)[N], V<T> x) {
    V<T> sum = all<T>(c[N - 1]);
    for (int i = N - 2; i >= 0; i--) sum = sum * x + c[i];
    return sum;
}

// e^x = 2^n (1 + part), |part| < 1/2; x must be between `least` and `most`, or NaN.
template <class T> inline V<T> split_exp(V<T> x, V<T> &power) {
    using C = Vector<T>;
    const V<T> shifted = x * C::log2e + C::round, n = shifted - C::round;
    const V<T> r = (x - n * C::ln2) - n * C::rest;
    // 2^n, made of its bits: n stands in the lowest ones of n + round.
    typename C::whole bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + C::bias) << C::mantissa;  // what is above the exponent's bits falls out
    std::memcpy(&power, &bits, sizeof power);
    return (polynomial(Coefficients<T>::exp, r) * r) * r + r;
}

// e^x; infinite above `most`, where 2^n is, and that of `least` below it. NaN stays NaN.
template <class T> inline V<T> exp_(V<T> x) {
    using C = Vector<T>;
    x = x > C::most ? all<T>(C::most) : x;
    x = x < C::least ? all<T>(C::least) : x;
    V<T> power;
    const V<T> part = split_exp<T>(x, power);
    return (part + T(1)) * power;
}

template <class T> inline V<T> sigmoid(V<T> x) { return T(1) / (T(1) + exp_<T>(-x)); }

// tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), where nothing cancels: n is never negative.
template <class T> inline V<T> tanh_(V<T> x) {
    using C = Vector<T>;
    constexpr auto sign = typename C::integer(1) << (sizeof(T) * 8 - 1);
    typename C::whole bits, signs;
    std::memcpy(&bits, &x, sizeof bits);
    signs = bits & sign;
    bits &= ~sign;
    V<T> a;
    std::memcpy(&a, &bits, sizeof a);
    a = a > C::flat ? all<T>(C::flat) : a;
    V<T> power;
    const V<T> part = split_exp<T>(a + a, power);
    const V<T> above = part * power + (power - T(1));
    const V<T> t = above / (above + T(2));
    std::memcpy(&bits, &t, sizeof bits);
    bits |= signs;
    V<T> found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

}  // namespace
