// G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou, "Minimal gated unit for recurrent neural networks",
// International Journal of Automation and Computing 13 (2016); as in torch's GRU, the gate comes
// after the product with W_hn.
#pragma once
#include "../cell.h"

namespace {

// f, n; p = W_hn h + b_hn; n = tanh(a_n + f p); h = (1 - f) h_before + f n
struct Mgu : Cell {
    static constexpr const char *NAME = "MGU";
    static constexpr int GATES = 2, APART = 1;
    static constexpr bool DIRECT = true;

    template <class T> static void forward(ForwardStep<T, Mgu> &s) {
        const V<T> f = sigmoid<T>(s.gate[0]);
        const V<T> n = tanh_<T>(s.gate[1] + f * s.apart[0]);
        s.gate[0] = f, s.gate[1] = n;
        s.after[0] = s.before[0] + f * (n - s.before[0]);
    }

    template <class T> static void backward(BackwardStep<T, Mgu> &s) {
        const V<T> f = s.gate[0], n = s.gate[1], p = s.apart[0], dh = s.d_state[0];
        const V<T> dn = dh * f * (T(1) - n * n);
        s.d_gate[0] = (dh * (n - s.before[0]) + dn * p) * f * (T(1) - f);
        s.d_gate[1] = dn;
        s.d_apart[0] = dn * f;
        s.d_state[0] = dh * (T(1) - f);
    }
};

}  // namespace
