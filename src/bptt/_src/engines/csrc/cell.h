// What a cell is to the kernels: its sizes and one step, forward and backward, on one vector of
// hidden units. A cell only computes; the passes load and store, and make the large products. The
// cells are in cells/: compare them with the equations in bptt/cells.
#pragma once
#include "bptt_kernels.h"
#include "vector.h"

namespace {

// The sizes of a cell that does not say otherwise. Each cell has besides a NAME and its number of
// GATES: blocks of H rows in W_ih and W_hh.
struct Cell {
    static constexpr int APART = 0;   // how many of the last gates get W_hh h apart from W_ih x
    static constexpr int STATES = 1;  // h and others
    static constexpr int UNITS = 0;   // vectors of weights with one for each hidden unit
    static constexpr bool KEEPS_GATES = true;  // if not, backward() gets no gates and one state
    static constexpr bool DIRECT = false;      // h depends on h before not only through W_hh
};

template <class Cell> constexpr bool is_sound() {
    return Cell::GATES >= 1 && 0 <= Cell::APART && Cell::APART <= Cell::GATES &&
           1 <= Cell::STATES && Cell::STATES <= BPTT_STATES && Cell::UNITS >= 0 &&
           (Cell::KEEPS_GATES || (Cell::GATES == 1 && !Cell::APART && Cell::STATES == 1));
}

// How many elements of `kept` a row has for each hidden unit: the gates, then what is apart, then
// the states other than h.
template <class Cell>
constexpr int KEPT = Cell::KEEPS_GATES ? Cell::GATES + Cell::APART + Cell::STATES - 1 : 0;

// Whether h may be a projection of what forward() makes.
template <class Cell> constexpr bool PROJECTS = Cell::KEEPS_GATES && !Cell::DIRECT;

constexpr int room(int n) { return n > 0 ? n : 1; }  // C++ has no empty arrays

template <class T, class Cell> struct ForwardStep {
    V<T> gate[Cell::GATES];  // in: W_ih x + b_ih, and W_hh h + b_hh unless it is apart; out: what
                             // backward() needs
    V<T> apart[room(Cell::APART)];  // W_hh h + b_hh, of the last gates; in, out
    V<T> unit[room(Cell::UNITS)];
    V<T> before[Cell::STATES];
    V<T> after[Cell::STATES];  // out
};

template <class T, class Cell> struct BackwardStep {
    V<T> gate[Cell::GATES], apart[room(Cell::APART)];  // as forward() left them
    V<T> unit[room(Cell::UNITS)];
    V<T> before[Cell::STATES], after[Cell::STATES];
    V<T> d_state[Cell::STATES];  // in: ∂L/∂after; out: ∂L/∂before but for what goes through W_hh;
                                 // of h only if DIRECT
    // The gradients of what forward() got; out.
    V<T> d_gate[Cell::GATES], d_apart[room(Cell::APART)], d_unit[room(Cell::UNITS)];
};

}  // namespace
