// All cells there are. A cell's number is its place in the list, and says nothing to others: they
// ask for it by name.
#pragma once
#include "elman.h"
#include "gru.h"
#include "lstm.h"
#include "mgu.h"
#include "peephole.h"

namespace {

template <class... Each> struct List {
    static constexpr int64_t SIZE = sizeof...(Each);
    static_assert((is_sound<Each>() && ...), "the sizes of a cell");

    // What call(cell) gives for the cell with this number; if there is none, `otherwise`.
    template <class R, class Call> static R with(int64_t number, R otherwise, Call call) {
        int64_t n = 0;
        R result = otherwise;
        ((n++ == number ? void(result = call(Each())) : void()), ...);
        return result;
    }
};

using Cells = List<Elman<Phi::TANH>, Elman<Phi::RELU>, Elman<Phi::SIGMOID>, Gru, Lstm, Mgu,
                   PeepholeLstm>;

}  // namespace
