// F. A. Gers, N. N. Schraudolph, J. Schmidhuber, "Learning precise timing with LSTM recurrent
// networks", Journal of Machine Learning Research 3 (2002).
#pragma once
#include "../cell.h"

namespace {

// i, f, g, o, of which i and f also see c_before, and o sees c, by a weight of each unit;
// c = f c_before + i g; h = o tanh(c)
struct PeepholeLstm : Cell {
    static constexpr const char *NAME = "PEEPHOLE_LSTM";
    static constexpr int GATES = 4, STATES = 2, UNITS = 3;

    template <class T> static void forward(ForwardStep<T, PeepholeLstm> &s) {
        const V<T> before = s.before[1];
        const V<T> i = sigmoid<T>(s.gate[0] + s.unit[0] * before);
        const V<T> f = sigmoid<T>(s.gate[1] + s.unit[1] * before);
        const V<T> g = tanh_<T>(s.gate[2]);
        const V<T> c = f * before + i * g;
        const V<T> o = sigmoid<T>(s.gate[3] + s.unit[2] * c);
        s.gate[0] = i, s.gate[1] = f, s.gate[2] = g, s.gate[3] = o;
        s.after[0] = o * tanh_<T>(c);
        s.after[1] = c;
    }

    template <class T> static void backward(BackwardStep<T, PeepholeLstm> &s) {
        const V<T> i = s.gate[0], f = s.gate[1], g = s.gate[2], o = s.gate[3];
        const V<T> before = s.before[1], c = s.after[1], dh = s.d_state[0];
        const V<T> tanh_c = tanh_<T>(c);
        const V<T> d_o = dh * tanh_c * o * (T(1) - o);
        const V<T> dc = s.d_state[1] + dh * o * (T(1) - tanh_c * tanh_c) + s.unit[2] * d_o;
        const V<T> d_i = dc * g * i * (T(1) - i), d_f = dc * before * f * (T(1) - f);
        s.d_gate[0] = d_i;
        s.d_gate[1] = d_f;
        s.d_gate[2] = dc * i * (T(1) - g * g);
        s.d_gate[3] = d_o;
        s.d_unit[0] = d_i * before;
        s.d_unit[1] = d_f * before;
        s.d_unit[2] = d_o * c;
        s.d_state[1] = dc * f + s.unit[0] * d_i + s.unit[1] * d_f;
    }
};

}  // namespace
