// Matrix products C (+)= A B, where B is packed into panels and C is worked on tile by tile. P is
// what A and B are made of (operand.h), T = Sum<P> what C is.
//
// A panel is some vectors wide and as long as B has rows, row after row. A tile is a panel's width
// of C and some rows high; all of it stays in registers while k runs. Each element of C is summed
// over k in order, whatever the tile, the panel or the thread, so it always has the same bits.
#pragma once
#include <algorithm>
#include <utility>

#include "operand.h"

namespace {

constexpr int ACCUMULATORS = BPTT_REGISTERS == 32 ? 24 : 12;
constexpr int MOST_ROWS = BPTT_REGISTERS == 32 ? 8 : 6;
constexpr int MOST_VECTORS = 8;
constexpr int64_t DEPTH_BYTES = 2048;  // of k at a time: a panel of it stays in the first cache
constexpr int64_t BLOCK_ROWS = 128;    // of A at a time: they stay in the second cache

template <class P> constexpr int64_t DEPTH = DEPTH_BYTES / sizeof(P);

// How many vectors wide the panels for a product with so many rows are at most.
inline int widest_panel(int64_t rows) {
    const int tall = int(std::min<int64_t>(std::max<int64_t>(rows, 1), MOST_ROWS));
    return std::min(MOST_VECTORS, ACCUMULATORS / tall);
}

// The next part of what is left, where parts are at most so large: none of them much smaller.
inline int64_t part(int64_t left, int64_t most) {
    if (left <= most) return left;
    return left < 2 * most ? (left + 1) / 2 : most;
}

template <class T> constexpr int64_t round_up(int64_t n) {
    return (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>;
}

// ---------------------------------------------------------------------------------- one tile

// c[R][C vectors] (+)= a[R][K] b[K][C vectors]. A's rows lie a_row apart; where it is packed, its
// columns lie one after the other, R long. B's rows lie b_row apart. K is whole pairs.
template <class P, int R, int C, bool PACKED>
void tile(int64_t K, const P *a, int64_t a_row, const P *b, int64_t b_row, Sum<P> *c,
          int64_t c_row, bool add) {
    using T = Sum<P>;
    V<T> sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < C; v++)
            sum[r][v] = add ? load(c + r * c_row + v * WIDTH<T>) : V<T>{};
    for (int64_t k = 0; k < K; k += PAIR<P>) {
        Word<P> row[C];
#pragma GCC unroll 8
        for (int v = 0; v < C; v++) row[v] = Operand<P>::words_at(b + v * WIDTH<P>);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const auto left = Operand<P>::broadcast(PACKED ? a + r * PAIR<P> : a + r * a_row);
#pragma GCC unroll 8
            for (int v = 0; v < C; v++) Operand<P>::add_product(sum[r][v], left, row[v]);
        }
        a += PACKED ? R * PAIR<P> : PAIR<P>;
        b += b_row * PAIR<P>;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < C; v++) store(c + r * c_row + v * WIDTH<T>, sum[r][v]);
}

template <class P>
using Tile = void (*)(int64_t, const P *, int64_t, const P *, int64_t, Sum<P> *, int64_t, bool);

template <class P, bool PACKED, int R, int C> constexpr Tile<P> tile_if_it_fits() {
    if constexpr (R * C <= ACCUMULATORS) return tile<P, R, C, PACKED>;
    else return nullptr;
}

template <class P, bool PACKED> struct Tiles {
    Tile<P> of[MOST_ROWS * MOST_VECTORS];
    template <int... I> constexpr explicit Tiles(std::integer_sequence<int, I...>)
        : of{tile_if_it_fits<P, PACKED, I / MOST_VECTORS + 1, I % MOST_VECTORS + 1>()...} {}
};

template <class P, bool PACKED>
constexpr Tiles<P, PACKED> TILES{std::make_integer_sequence<int, MOST_ROWS * MOST_VECTORS>()};

// -------------------------------------------------------------------------------- the product

// The right side of a product: packed, or, with `row`, where it is, its rows so far apart. Where the
// columns do not end with a whole vector, what comes after them is read then, but not used.
template <class P> struct Panels {
    P *data;
    int64_t depth;    // rows of all of it
    int64_t columns;
    int widest;       // in vectors
    int64_t row = 0;

    // Call each(first column, its vectors, where it begins) for one panel after the other.
    template <class Each> void walk(Each each) const {
        constexpr int64_t W = WIDTH<Sum<P>>;
        P *panel = data;
        const int64_t vectors = (columns + W - 1) / W;
        for (int64_t v = 0; v < vectors;) {
            const int wide = int(part(vectors - v, widest));
            each(v * W, wide, panel);
            panel += (row ? 1 : paired<P>(depth)) * wide * W;
            v += wide;
        }
    }
};

// The left side: rows that lie `row` apart, or slivers as pack_slivers() makes them (row = 0).
template <class P> struct Left {
    const P *data;
    int64_t row;
};

// Copy rows of so many vectors, of which `width` elements are there.
template <class T>
void copy_rows(int rows, int wide, int64_t width, const T *from, int64_t from_row, T *to,
               int64_t to_row) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            const int64_t at = v * WIDTH<T>;
            store(to + r * to_row + at, load(from + r * from_row + at, width - at), width - at);
        }
}

// C[rows, columns] (+)= A[rows, K] B[first + K rows of the panels, columns].
template <class P, bool PACKED>
void multiply_as(int64_t rows, int64_t K, Left<P> a, const Panels<P> &b, int64_t first, Sum<P> *c,
                 int64_t c_row, bool add) {
    constexpr int64_t W = WIDTH<Sum<P>>;
    const int tall = std::min(MOST_ROWS, ACCUMULATORS / b.widest);
    for (int64_t k = 0; k < K; k += DEPTH<P>) {
        const int64_t deep = std::min(DEPTH<P>, K - k);
        const bool more = add || k > 0;
        for (int64_t block = 0; block < rows;) {
            int64_t end = block;
            b.walk([&](int64_t column, int wide, const P *panel) {
                const int64_t right_row = b.row ? b.row : wide * W;
                const P *right = panel + (first + k) * right_row;
                const int64_t width = std::min<int64_t>(wide * W, b.columns - column);
                int64_t r = block;
                for (; r < rows && r < block + BLOCK_ROWS;) {
                    const int high = int(part(rows - r, tall));
                    const P *left =
                        PACKED ? a.data + r * paired<P>(K) + k * high : a.data + r * a.row + k;
                    const Tile<P> run =
                        TILES<P, PACKED>.of[(high - 1) * MOST_VECTORS + wide - 1];
                    Sum<P> *to = c + r * c_row + column;
                    if (width == wide * W) {
                        run(deep, left, a.row, right, right_row, to, c_row, more);
                    } else {  // the last vector is not a whole one
                        Sum<P> whole[ACCUMULATORS * W];
                        const int64_t whole_row = wide * W;
                        if (more) copy_rows(high, wide, width, to, c_row, whole, whole_row);
                        run(deep, left, a.row, right, right_row, whole, whole_row, more);
                        copy_rows(high, wide, width, whole, whole_row, to, c_row);
                    }
                    r += high;
                }
                end = r;
            });
            if (end == block) return;  // no columns
            block = end;
        }
    }
}

template <class P>
void multiply(int64_t rows, int64_t K, Left<P> a, const Panels<P> &b, Sum<P> *c, int64_t c_row,
              bool add, int64_t first = 0) {
    if (a.row) multiply_as<P, false>(rows, K, a, b, first, c, c_row, add);
    else multiply_as<P, true>(rows, K, a, b, first, c, c_row, add);
}

// ------------------------------------------------------------------------------------ packing

// Some columns of rows that are numbers to be summed, as what they are in a product.
template <class P>
void round_rows(int64_t rows, int64_t begin, int64_t end, int64_t K, const Sum<P> *from,
                int64_t from_row, P *to, int64_t to_row) {
    constexpr int64_t W = WIDTH<Sum<P>>;
    for (int64_t r = 0; r < rows; r++, from += from_row, to += to_row) {
        for (int64_t k = begin; k < end; k += W)
            Operand<P>::store_row(to + k, load(from + k, end - k), end - k);
        if (end == K) std::fill(to + K, to + paired<P>(K), P{});
    }
}

// The panel of rows[k][column...], of which `width` columns are there and the rest is zero.
template <class P, class Row>
void pack_panel(int64_t depth, Row row, int64_t column, int64_t width, int wide, P *to) {
    using T = Sum<P>;
    const auto some = [&](const T *from, int v) {
        const int64_t left = std::max<int64_t>(width - v * WIDTH<T>, 0);
        return from ? load(from + column + v * WIDTH<T>, left) : V<T>{};
    };
    for (int64_t k = 0; k < depth; k += PAIR<P>, to += wide * WIDTH<P>) {
        const T *const first = row(k);
        const T *const second = PAIR<P> > 1 && k + 1 < depth ? row(k + 1) : nullptr;
        for (int v = 0; v < wide; v++) {
            const V<T> found = Operand<P>::words(some(first, v), some(second, v));
            std::memcpy(static_cast<void *>(to + v * WIDTH<P>), &found, sizeof found);
        }
    }
}

// Pack B[k][column] = row(k)[column]; a missing row (null) is zero.
template <class P, class Row> void pack_rows(const Panels<P> &b, Row row) {
    b.walk([&](int64_t column, int wide, P *panel) {
        const int64_t width = std::min<int64_t>(wide * WIDTH<Sum<P>>, b.columns - column);
        pack_panel<P>(b.depth, row, column, width, wide, panel);
    });
}

template <class T, int... I>
inline void zip(V<T> a, V<T> b, V<T> &low, V<T> &high, std::integer_sequence<int, I...>) {
    constexpr int W = WIDTH<T>;
#if defined(__clang__)
    low = __builtin_shufflevector(a, b, (I % 2 * W + I / 2)...);
    high = __builtin_shufflevector(a, b, (I % 2 * W + W / 2 + I / 2)...);
#else
    low = __builtin_shuffle(a, b, typename Vector<T>::whole{(I % 2 * W + I / 2)...});
    high = __builtin_shuffle(a, b, typename Vector<T>::whole{(I % 2 * W + W / 2 + I / 2)...});
#endif
}

// The rows of a matrix of vectors become its columns.
template <class T> void transpose(V<T> (&rows)[WIDTH<T>]) {
    constexpr int W = WIDTH<T>;
    V<T> next[W];
#pragma GCC unroll 4
    for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++)
            zip<T>(rows[i], rows[i + W / 2], next[2 * i], next[2 * i + 1],
                   std::make_integer_sequence<int, W>());
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) rows[i] = next[i];
    }
}

// Load W rows, of which so many are there and n of their numbers, and make columns of them.
template <class P>
void load_columns(const Sum<P> *from, int64_t from_row, int64_t there, int64_t n,
                  V<Sum<P>> (&columns)[WIDTH<Sum<P>>]) {
    using T = Sum<P>;
    constexpr int W = WIDTH<T>;
    if (there == W && n >= W * PAIR<P>) {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) columns[i] = Operand<P>::words(from + i * from_row, W * PAIR<P>);
    } else {
        for (int i = 0; i < W; i++)
            columns[i] = i < there ? Operand<P>::words(from + i * from_row, n) : V<T>{};
    }
    transpose<T>(columns);
}

// A panel of B[k][column] = w[column * w_row + k].
template <class P>
void pack_transposed_panel(const Panels<P> &b, const Sum<P> *w, int64_t w_row, int64_t column,
                           int wide, P *panel) {
    using T = Sum<P>;
    constexpr int64_t W = WIDTH<T>;
    for (int v = 0; v < wide; v++) {
        const int64_t first = column + v * W, there = std::min<int64_t>(W, b.columns - first);
        P *to = panel + v * WIDTH<P>;
        for (int64_t k = 0; k < b.depth; k += WIDTH<P>) {
            V<T> columns[W];
            load_columns<P>(w + first * w_row + k, w_row, there, b.depth - k, columns);
            const int64_t words = (std::min<int64_t>(b.depth - k, WIDTH<P>) + PAIR<P> - 1) / PAIR<P>;
            for (int64_t i = 0; i < words; i++, to += wide * WIDTH<P>)
                std::memcpy(static_cast<void *>(to), &columns[i], sizeof columns[i]);
        }
    }
}

template <class P> void pack_transposed(const Panels<P> &b, const Sum<P> *w, int64_t w_row) {
    b.walk([&](int64_t column, int wide, P *panel) {
        pack_transposed_panel(b, w, w_row, column, wide, panel);
    });
}

template <class P, int HIGH>
void pack_sliver(int64_t depth, const P *d, int64_t d_row, P *to) {
    int64_t k = 0;
    for (; k + PAIR<P> <= depth; k += PAIR<P>, to += HIGH * PAIR<P>)
        for (int i = 0; i < HIGH; i++)
            for (int j = 0; j < PAIR<P>; j++) to[i * PAIR<P> + j] = d[(k + j) * d_row + i];
    for (int i = 0; k < depth && i < HIGH; i++)
        to[i * PAIR<P>] = d[k * d_row + i], to[i * PAIR<P> + 1] = P{};
}

template <class P, int... I>
void pack_sliver_of(int high, int64_t depth, const P *d, int64_t d_row, P *to,
                    std::integer_sequence<int, I...>) {
    ((high == I + 1 ? pack_sliver<P, I + 1>(depth, d, d_row, to) : void()), ...);
}

// Pack A[m][k] = d[k * d_row + m] for the left side of a product with panels that are so wide.
template <class P>
void pack_slivers(int64_t rows, int64_t depth, const P *d, int64_t d_row, int widest, P *to) {
    const int tall = std::min(MOST_ROWS, ACCUMULATORS / widest);
    for (int64_t m = 0; m < rows;) {
        const int high = int(part(rows - m, tall));
        pack_sliver_of(high, depth, d + m, d_row, to, std::make_integer_sequence<int, MOST_ROWS>());
        to += high * paired<P>(depth);
        m += high;
    }
}

// ------------------------------------------------------------------- few rows, without packing

constexpr int64_t FEW = 16;  // rows, for which packing costs more than it saves

// c[R, columns] (+)= a[R, K] Wᵀ, where the rows of W lie w_row apart. In c there is room for columns
// or, where that is more, whole vectors: what is not of W becomes zero.
template <class T, int R>
void multiply_transposed(int64_t K, const T *a, int64_t a_row, const T *w, int64_t w_row,
                         int64_t columns, int64_t room, T *c, int64_t c_row, bool add) {
    constexpr int64_t W = WIDTH<T>;
    for (int64_t j = 0; j < columns; j += W) {
        const int64_t there = std::min(W, columns - j);
        V<T> sum[R];
        for (int r = 0; r < R; r++) sum[r] = add ? load(c + r * c_row + j, room - j) : V<T>{};
        for (int64_t k = 0; k < K; k += W) {
            V<T> of_k[W];
            load_columns<T>(w + j * w_row + k, w_row, there, K - k, of_k);
            const auto add_k = [&](int64_t i) {
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) sum[r] += a[r * a_row + k + i] * of_k[i];
            };
            if (K - k >= W) {
#pragma GCC unroll 16
                for (int64_t i = 0; i < W; i++) add_k(i);
            } else {
                for (int64_t i = 0; i < K - k; i++) add_k(i);
            }
        }
        for (int r = 0; r < R; r++) store(c + r * c_row + j, sum[r], room - j);
    }
}

template <class T, int... I>
void multiply_transposed(std::integer_sequence<int, I...>, int64_t rows, int64_t K, const T *a,
                         int64_t a_row, const T *w, int64_t w_row, int64_t columns, int64_t room,
                         T *c, int64_t c_row, bool add) {
    constexpr int64_t MOST = sizeof...(I);
    for (int64_t r = 0; r < rows;) {
        const int64_t high = part(rows - r, MOST);
        const T *const from = a + r * a_row;
        T *const to = c + r * c_row;
        ((high == I + 1 ? multiply_transposed<T, I + 1>(K, from, a_row, w, w_row, columns, room, to,
                                                        c_row, add)
                        : void()),
         ...);
        r += high;
    }
}

// C[rows, columns] (+)= A[rows, K] B, where the rows of B lie b_row apart. Whole vectors are read of
// them, so that the last ones are copied, to `place`, unless there are more rows after them.
template <class T>
void multiply_in_place(int64_t rows, int64_t K, Left<T> a, const T *b, int64_t b_row,
                       int64_t columns, T *place, T *c, int64_t c_row, bool add, bool more = false) {
    const int64_t last = more ? 0 : std::min(K, (WIDTH<T> + b_row - 1) / b_row), before = K - last;
    const int widest = widest_panel(rows);
    multiply<T>(rows, before, a, {const_cast<T *>(b), before, columns, widest, b_row}, c, c_row, add);
    if (!last) return;
    const Panels<T> copied{place, last, columns, widest};
    pack_rows(copied, [&](int64_t k) { return b + (before + k) * b_row; });
    multiply<T>(rows, last, {a.data + before, a.row}, copied, c, c_row, add || before > 0);
}

// How many elements `place` has for each thread.
template <class T> int64_t size_in_place(int64_t b_row) {
    return (WIDTH<T> + b_row - 1) / b_row * round_up<T>(b_row);
}

}  // namespace
