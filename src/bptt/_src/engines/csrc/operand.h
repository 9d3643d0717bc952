// What the two sides of a product are made of: usually the numbers that it is summed in. Or they are
// bfloat16, of which two, of one k and the next, lie where one float would and are multiplied at
// once. The products are exact in float, and are added one after the other, that of the second k
// first.
#pragma once
#include <type_traits>

#include "vector.h"

namespace {

template <class P> struct Operand {
    using Sum = P;
    using Word = V<P>;  // of a panel
    static constexpr int64_t PAIR = 1;  // how many k lie in the place of one

    // Of n numbers of a row, consecutive k, as many as there is room for; the rest is zero.
    static V<P> words(const P *p, int64_t n) { return load(p, n); }
    // Of the same columns, one k and the next.
    static V<P> words(V<P> first, V<P>) { return first; }
    static V<P> words_at(const P *p) { return load(p); }
    static P broadcast(const P *p) { return *p; }
    static void add_product(V<P> &sum, P left, V<P> right) { sum += left * right; }
    static void store_row(P *to, V<P> v, int64_t n) { store(to, v, n); }
    static V<P> numbers(const P *p) { return load(p); }
};

#if defined(__AVX512BF16__)
struct Bf16 { std::uint16_t bits; };  // rounded to the nearest; of two that are as near, to the even

template <> struct Operand<Bf16> {
    using Sum = float;
    using Word = __m512bh;
    static constexpr int64_t PAIR = 2;

    static V<float> words(const float *p, int64_t n) {
        const V<float> low = load(p, n), high = n > 16 ? load(p + 16, n - 16) : V<float>{};
        return V<float>(_mm512_cvtne2ps_pbh(__m512(high), __m512(low)));
    }
    static V<float> words(V<float> first, V<float> second) {
        alignas(64) static constexpr std::uint16_t places[] = {
            0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
        return V<float>(_mm512_permutexvar_epi16(_mm512_load_si512(places), both));
    }
    static Word words_at(const Bf16 *p) { return Word(_mm512_loadu_si512(p)); }
    static Word broadcast(const Bf16 *p) {
        int pair;
        std::memcpy(&pair, p, sizeof pair);
        return Word(_mm512_set1_epi32(pair));
    }
    static void add_product(V<float> &sum, Word left, Word right) {
        sum = V<float>(_mm512_dpbf16_ps(__m512(sum), left, right));
    }
    static void store_row(Bf16 *to, V<float> v, int64_t n) {
        const __mmask16 there = n >= 16 ? __mmask16(-1) : first_of(n);
        _mm256_mask_storeu_epi16(to, there, __m256i(_mm512_cvtneps_pbh(__m512(v))));
    }
    static V<float> numbers(const Bf16 *p) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        return V<float>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
};
#endif

template <class P> using Sum = typename Operand<P>::Sum;
template <class P> using Word = typename Operand<P>::Word;
template <class P> constexpr int64_t PAIR = Operand<P>::PAIR;
template <class P> constexpr bool IS_ROUNDED = !std::is_same_v<P, Sum<P>>;

// So many k, and what fills the last pair: a zero.
template <class P> constexpr int64_t paired(int64_t n) {
    return (n + PAIR<P> - 1) / PAIR<P> * PAIR<P>;
}

}  // namespace
