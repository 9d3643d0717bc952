// Norms of the state's gradient, row by row of a chunk of steps. Each vector's units belong to one
// thread, which adds up their squares; what these make is then added in the same order by anyone.
#pragma once
#include <algorithm>

#include "team.h"
#include "vector.h"

namespace {

template <class T, int64_t STATES> struct RowNorms {
    int64_t widths[STATES];  // of the states
    double *squares;         // sums over a vector's units, [rows, STATES, vectors]

    int64_t vectors() const {
        return (*std::max_element(widths, widths + STATES) + WIDTH<T> - 1) / WIDTH<T>;
    }
    int64_t of_row() const { return STATES * vectors(); }

    // Some units of a row's state.
    void square(int64_t row, int64_t state, const T *d, const Range &own) {
        double *const sums = squares + (row * STATES + state) * vectors();
        for (int64_t u = own.begin; u < own.end; u += WIDTH<T>) {
            double sum = 0;
            for (int64_t v = u; v < std::min<int64_t>(u + WIDTH<T>, own.end); v++)
                sum += double(d[v]) * double(d[v]);
            sums[u / WIDTH<T>] = sum;
        }
    }

    // Some of the norms, [rows, STATES].
    void report(const Range &own, double *to) const {
        for (int64_t n = own.begin; n < own.end; n++) {
            const int64_t there = (widths[n % STATES] + WIDTH<T> - 1) / WIDTH<T>;
            double sum = 0;
            for (int64_t v = 0; v < there; v++) sum += squares[n * vectors() + v];
            to[n] = __builtin_sqrt(sum);
        }
    }
};

}  // namespace
