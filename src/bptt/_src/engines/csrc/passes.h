// Whole calls, by the cell and by what products are made of.
#pragma once
#include "arena.h"
#include "backward.h"
#include "cells/list.h"
#include "forward.h"
#include "readout.h"

namespace {

thread_local Arena arena;

template <class Work> int start(Work &&pass, const bptt_threads &threads) {
    if (!pass.reserve(arena)) return BPTT_NO_MEMORY;
    run(threads, pass.team(), [&](const Member &me) { pass.work(me); });
    return 0;
}

template <template <class, class> class Pass, class P>
int with_cell(const bptt_sequence &q, const bptt_threads &threads) {
    return Cells::with<int>(q.cell, BPTT_NO_CELL, [&](auto cell) {
        return start(Pass<P, decltype(cell)>(q), threads);
    });
}

}  // namespace
