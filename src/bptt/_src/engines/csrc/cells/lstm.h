// S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997), with the
// forget gate of F. Gers, J. Schmidhuber, F. Cummins (2000).
#pragma once
#include "../cell.h"

namespace {

// i, f, g, o; c = f c_before + i g; h = o tanh(c)
struct Lstm : Cell {
    static constexpr const char *NAME = "LSTM";
    static constexpr int GATES = 4, STATES = 2;

    template <class T> static void forward(ForwardStep<T, Lstm> &s) {
        const V<T> i = sigmoid<T>(s.gate[0]), f = sigmoid<T>(s.gate[1]);
        const V<T> g = tanh_<T>(s.gate[2]), o = sigmoid<T>(s.gate[3]);
        const V<T> c = f * s.before[1] + i * g;
        s.gate[0] = i, s.gate[1] = f, s.gate[2] = g, s.gate[3] = o;
        s.after[0] = o * tanh_<T>(c);
        s.after[1] = c;
    }

    template <class T> static void backward(BackwardStep<T, Lstm> &s) {
        const V<T> i = s.gate[0], f = s.gate[1], g = s.gate[2], o = s.gate[3];
        const V<T> tanh_c = tanh_<T>(s.after[1]), dh = s.d_state[0];
        const V<T> dc = s.d_state[1] + rounded<T>(dh * o * (T(1) - tanh_c * tanh_c));
        s.d_gate[0] = dc * g * i * (T(1) - i);
        s.d_gate[1] = dc * s.before[1] * f * (T(1) - f);
        s.d_gate[2] = dc * i * (T(1) - g * g);
        s.d_gate[3] = dh * tanh_c * o * (T(1) - o);
        s.d_state[1] = dc * f;
    }
};

}  // namespace
