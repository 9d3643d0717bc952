// Vectors of one register, by the compiler's own extensions (gcc, clang), and functions on them.
#pragma once
#include <cstdint>
#include <cstring>

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
    static constexpr int bias = 127, mantissa = 23;
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float most = 88.0f, least = -87.0f;  // of exp
    // log 2 in two parts; n times the first is exact.
    static constexpr float log2e = 1.44269504f, ln2 = 0.693145751953125f, rest = 1.42860682e-6f;
};

template <> struct Vector<double> {
    typedef double type __attribute__((vector_size(BPTT_BYTES)));
    typedef int64_t whole __attribute__((vector_size(BPTT_BYTES)));
    typedef int64_t integer;
    static constexpr int bias = 1023, mantissa = 52;
    static constexpr double round = 6755399441055744.0;
    static constexpr double most = 709.0, least = -708.0;
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

template <class T> inline V<T> all(T x) { return x - V<T>{}; }

// Polynomials by Chebyshev interpolation, their error below half a unit in the last place:
// (e^r - 1 - r) / r² for |r| <= ln 2 / 2, and (tanh(x) / x - 1) / x² in x², for |x| <= 0.625.
template <class T> struct Coefficients;
template <> struct Coefficients<float> {
    static constexpr float exp[] = {0.5f, 0.16666577026f, 0.041666554662f, 0.0083631730745f,
                                    0.001392617612f};
    static constexpr float tanh[] = {-0.33333333172f,  0.13333303557f,   -0.053959259577f,
                                     0.021768918651f,  -0.0083439455158f, 0.0022927448162f};
};
template <> struct Coefficients<double> {
    static constexpr double exp[] = {
        0.50000000000000010211,   0.16666666666666667452,   0.041666666666624161903,
        0.0083333333333300644495, 0.0013888888917196719077, 0.00019841269863040545271,
        2.4801521322368693266e-5, 2.7557268480310025526e-6, 2.7620075879983366586e-7,
        2.5100375832561233664e-8};
    static constexpr double tanh[] = {
        -0.33333333333333333319,  0.13333333333333320761,   -0.053968253968235901344,
        0.021869488535133222007,  -0.0088632354998019925691, 0.0035921275075992522291,
        -0.0014558283998303245859, 0.0005899818158388232071, -0.00023888944636751173895,
        0.000096041091570262659879, -0.000037081069215442333853, 0.000012209921790162781662,
        -2.4388316314720878041e-6};
};

template <class T, int N> inline V<T> polynomial(const T (&c)[N], V<T> x) {
    V<T> sum = all<T>(c[N - 1]);
    for (int i = N - 2; i >= 0; i--) sum = sum * x + c[i];
    return sum;
}

// e^x; infinite above `most`, and that of `least` below it. NaN stays NaN.
template <class T> inline V<T> exp_(V<T> given) {
    using C = Vector<T>;
    V<T> x = given > C::most ? all<T>(C::most) : given;
    x = x < C::least ? all<T>(C::least) : x;
    V<T> n = (x * C::log2e + C::round) - C::round;
    V<T> r = (x - n * C::ln2) - n * C::rest;
    V<T> p = (polynomial(Coefficients<T>::exp, r) * r) * r + r + T(1);
    // p * 2^n, the power made of its bits: n stands in the lowest ones of n + round.
    V<T> shifted = n + C::round;
    typename C::whole bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + C::bias) << C::mantissa;  // what is above the exponent's bits falls out
    V<T> power;
    std::memcpy(&power, &bits, sizeof power);
    return given > C::most ? all<T>(T(__builtin_inf())) : p * power;
}

template <class T> inline V<T> sigmoid(V<T> x) { return T(1) / (T(1) + exp_<T>(-x)); }

template <class T> inline V<T> abs_(V<T> x) {
    typename Vector<T>::whole bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= ~(typename Vector<T>::integer(1) << (sizeof(T) * 8 - 1));
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

template <class T> inline V<T> tanh_(V<T> x) {
    V<T> a = abs_<T>(x), z = x * x;
    V<T> near = x + (x * z) * polynomial(Coefficients<T>::tanh, z);
    V<T> far = T(1) - T(2) / (exp_<T>(a + a) + T(1));
    far = x < T(0) ? -far : far;
    return a < T(0.625) ? near : far;
}

}  // namespace
