// Matrix products C (+)= A B, where B is packed into panels and C is worked on tile by tile.
//
// A panel is some vectors wide and as long as B has rows, row after row. A tile is a panel's width
// of C and some rows high; all of it stays in registers while k runs. Each element of C is summed
// over k in order, whatever the tile, the panel or the thread, so it always has the same bits.
#pragma once
#include <algorithm>
#include <utility>

#include "vector.h"

namespace {

constexpr int ACCUMULATORS = BPTT_REGISTERS == 32 ? 24 : 12;
constexpr int MOST_ROWS = BPTT_REGISTERS == 32 ? 8 : 6;
constexpr int MOST_VECTORS = 8;
constexpr int64_t DEPTH_BYTES = 2048;  // of k at a time: a panel of it stays in the first cache
constexpr int64_t BLOCK_ROWS = 128;    // of A at a time: they stay in the second cache

template <class T> constexpr int64_t DEPTH = DEPTH_BYTES / sizeof(T);

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
// columns lie one after the other, R long. B's rows lie b_row apart.
template <class T, int R, int C, bool PACKED>
void tile(int64_t K, const T *a, int64_t a_row, const T *b, int64_t b_row, T *c, int64_t c_row,
          bool add) {
    V<T> sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < C; v++)
            sum[r][v] = add ? load(c + r * c_row + v * WIDTH<T>) : V<T>{};
    for (int64_t k = 0; k < K; k++) {
        V<T> row[C];
#pragma GCC unroll 8
        for (int v = 0; v < C; v++) row[v] = load(b + v * WIDTH<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const T left = PACKED ? a[r] : a[r * a_row];
#pragma GCC unroll 8
            for (int v = 0; v < C; v++) sum[r][v] += left * row[v];
        }
        a += PACKED ? R : 1;
        b += b_row;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < C; v++) store(c + r * c_row + v * WIDTH<T>, sum[r][v]);
}

template <class T>
using Tile = void (*)(int64_t, const T *, int64_t, const T *, int64_t, T *, int64_t, bool);

template <class T, bool PACKED, int R, int C> constexpr Tile<T> tile_if_it_fits() {
    if constexpr (R * C <= ACCUMULATORS) return tile<T, R, C, PACKED>;
    else return nullptr;
}

template <class T, bool PACKED> struct Tiles {
    Tile<T> of[MOST_ROWS * MOST_VECTORS];
    template <int... I> constexpr explicit Tiles(std::integer_sequence<int, I...>)
        : of{tile_if_it_fits<T, PACKED, I / MOST_VECTORS + 1, I % MOST_VECTORS + 1>()...} {}
};

template <class T, bool PACKED>
constexpr Tiles<T, PACKED> TILES{std::make_integer_sequence<int, MOST_ROWS * MOST_VECTORS>()};

// -------------------------------------------------------------------------------- the product

// The right side of a product: packed, or, with `row`, where it is, its rows so far apart. Where the
// columns do not end with a whole vector, what comes after them is read then, but not used.
template <class T> struct Panels {
    T *data;
    int64_t depth;    // rows of all of it
    int64_t columns;
    int widest;       // in vectors
    int64_t row = 0;

    // Call each(first column, its vectors, where it begins) for one panel after the other.
    template <class Each> void walk(Each each) const {
        T *panel = data;
        const int64_t vectors = (columns + WIDTH<T> - 1) / WIDTH<T>;
        for (int64_t v = 0; v < vectors;) {
            const int wide = int(part(vectors - v, widest));
            each(v * WIDTH<T>, wide, panel);
            panel += (row ? 1 : depth) * wide * WIDTH<T>;
            v += wide;
        }
    }
};

// The left side: rows that lie `row` apart, or slivers as pack_slivers() makes them (row = 0).
template <class T> struct Left {
    const T *data;
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
template <class T, bool PACKED>
void multiply_as(int64_t rows, int64_t K, Left<T> a, const Panels<T> &b, int64_t first, T *c,
                 int64_t c_row, bool add) {
    const int tall = std::min(MOST_ROWS, ACCUMULATORS / b.widest);
    for (int64_t k = 0; k < K; k += DEPTH<T>) {
        const int64_t deep = std::min(DEPTH<T>, K - k);
        const bool more = add || k > 0;
        for (int64_t block = 0; block < rows;) {
            int64_t end = block;
            b.walk([&](int64_t column, int wide, const T *panel) {
                const int64_t right_row = b.row ? b.row : wide * WIDTH<T>;
                const T *right = panel + (first + k) * right_row;
                const int64_t width = std::min<int64_t>(wide * WIDTH<T>, b.columns - column);
                int64_t r = block;
                for (; r < rows && r < block + BLOCK_ROWS;) {
                    const int high = int(part(rows - r, tall));
                    const T *left = PACKED ? a.data + r * K + k * high : a.data + r * a.row + k;
                    const Tile<T> run =
                        TILES<T, PACKED>.of[(high - 1) * MOST_VECTORS + wide - 1];
                    T *to = c + r * c_row + column;
                    if (width == wide * WIDTH<T>) {
                        run(deep, left, a.row, right, right_row, to, c_row, more);
                    } else {  // the last vector is not a whole one
                        T whole[ACCUMULATORS * WIDTH<T>];
                        const int64_t whole_row = wide * WIDTH<T>;
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

template <class T>
void multiply(int64_t rows, int64_t K, Left<T> a, const Panels<T> &b, T *c, int64_t c_row,
              bool add, int64_t first = 0) {
    if (a.row) multiply_as<T, false>(rows, K, a, b, first, c, c_row, add);
    else multiply_as<T, true>(rows, K, a, b, first, c, c_row, add);
}

// ------------------------------------------------------------------------------------ packing

// The panel of rows[k][column...], of which `width` columns are there and the rest is zero.
template <class T, class Row>
void pack_panel(int64_t depth, Row row, int64_t column, int64_t width, int wide, T *to) {
    for (int64_t k = 0; k < depth; k++, to += wide * WIDTH<T>) {
        const T *from = row(k);
        for (int v = 0; v < wide; v++) {
            const int64_t left = std::max<int64_t>(width - v * WIDTH<T>, 0);
            store(to + v * WIDTH<T>, from ? load(from + column + v * WIDTH<T>, left) : V<T>{});
        }
    }
}

// Pack B[k][column] = row(k)[column]; a missing row (null) is zero.
template <class T, class Row> void pack_rows(const Panels<T> &b, Row row) {
    b.walk([&](int64_t column, int wide, T *panel) {
        const int64_t width = std::min<int64_t>(wide * WIDTH<T>, b.columns - column);
        pack_panel<T>(b.depth, row, column, width, wide, panel);
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

// W rows of W elements, `from_row` apart, become W columns, `to_row` apart.
template <class T> void transpose(const T *from, int64_t from_row, T *to, int64_t to_row) {
    constexpr int W = WIDTH<T>;
    V<T> rows[W], next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) rows[i] = load(from + i * from_row);
#pragma GCC unroll 4
    for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++)
            zip<T>(rows[i], rows[i + W / 2], next[2 * i], next[2 * i + 1],
                   std::make_integer_sequence<int, W>());
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to + i * to_row, rows[i]);
}

// Pack B[k][column] = w[column * w_row + k].
template <class T> void pack_transposed(const Panels<T> &b, const T *w, int64_t w_row) {
    b.walk([&](int64_t column, int wide, T *panel) {
        const int64_t row = wide * WIDTH<T>;
        for (int v = 0; v < wide; v++) {
            const int64_t first = column + v * WIDTH<T>;
            const int64_t there = std::min<int64_t>(WIDTH<T>, b.columns - first);
            const T *from = w + first * w_row;
            T *to = panel + v * WIDTH<T>;
            int64_t k = 0;
            if (there == WIDTH<T>)
                for (; k + WIDTH<T> <= b.depth; k += WIDTH<T>)
                    transpose<T>(from + k, w_row, to + k * row, row);
            for (; k < b.depth; k++)
                for (int64_t i = 0; i < WIDTH<T>; i++)
                    to[k * row + i] = i < there ? from[i * w_row + k] : T(0);
        }
    });
}

template <class T, int HIGH>
void pack_sliver(int64_t depth, const T *d, int64_t d_row, T *to) {
    for (int64_t k = 0; k < depth; k++)
        for (int i = 0; i < HIGH; i++) to[k * HIGH + i] = d[k * d_row + i];
}

// Pack A[m][k] = d[k * d_row + m] for the left side of a product with panels that are so wide.
template <class T>
void pack_slivers(int64_t rows, int64_t depth, const T *d, int64_t d_row, int widest, T *to) {
    const int tall = std::min(MOST_ROWS, ACCUMULATORS / widest);
    for (int64_t m = 0; m < rows;) {
        const int high = int(part(rows - m, tall));
        if (high == 8) pack_sliver<T, 8>(depth, d + m, d_row, to);
        else if (high == 6) pack_sliver<T, 6>(depth, d + m, d_row, to);
        else if (high == 4) pack_sliver<T, 4>(depth, d + m, d_row, to);
        else
            for (int64_t k = 0; k < depth; k++)
                for (int i = 0; i < high; i++) to[k * high + i] = d[k * d_row + m + i];
        to += high * depth;
        m += high;
    }
}

}  // namespace
