// K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
// translation", EMNLP (2014); as in torch, the reset gate comes after the product with W_hn.
#pragma once
#include "../cell.h"

namespace {

// r, z, n; q = W_hn h + b_hn; n = tanh(a_n + r q); h = (1 - z) n + z h_before
struct Gru : Cell {
    static constexpr const char *NAME = "GRU";
    static constexpr int GATES = 3, APART = 1;
    static constexpr bool DIRECT = true;

    template <class T> static void forward(ForwardStep<T, Gru> &s) {
        const V<T> r = sigmoid<T>(s.gate[0]), z = sigmoid<T>(s.gate[1]);
        const V<T> n = tanh_<T>(s.gate[2] + r * s.apart[0]);
        s.gate[0] = r, s.gate[1] = z, s.gate[2] = n;
        s.after[0] = n + z * (s.before[0] - n);
    }

    template <class T> static void backward(BackwardStep<T, Gru> &s) {
        const V<T> r = s.gate[0], z = s.gate[1], n = s.gate[2], q = s.apart[0], dh = s.d_state[0];
        const V<T> dn = dh * (T(1) - z) * (T(1) - n * n);
        s.d_gate[0] = dn * q * r * (T(1) - r);
        s.d_gate[1] = dh * (s.before[0] - n) * z * (T(1) - z);
        s.d_gate[2] = dn;
        s.d_apart[0] = dn * r;
        s.d_state[0] = dh * z;
    }
};

}  // namespace
