// J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
#pragma once
#include "../cell.h"

namespace {

enum class Phi { TANH, RELU, SIGMOID };

// h = φ(a)
template <Phi PHI> struct Elman : Cell {
    static constexpr const char *NAME = PHI == Phi::TANH   ? "RNN_TANH"
                                        : PHI == Phi::RELU ? "RNN_RELU"
                                                           : "RNN_SIGMOID";
    static constexpr int GATES = 1;
    static constexpr bool KEEPS_GATES = false;

    template <class T> static void forward(ForwardStep<T, Elman> &s) {
        const V<T> a = s.gate[0];
        if (PHI == Phi::TANH) s.after[0] = tanh_<T>(a);
        else if (PHI == Phi::RELU) s.after[0] = a < T(0) ? V<T>{} : a;
        else s.after[0] = sigmoid<T>(a);
    }

    template <class T> static void backward(BackwardStep<T, Elman> &s) {
        const V<T> h = s.after[0];
        V<T> slope;
        if (PHI == Phi::TANH) slope = T(1) - h * h;
        else if (PHI == Phi::RELU) slope = h <= T(0) ? V<T>{} : all<T>(1);
        else slope = h * (T(1) - h);
        s.d_gate[0] = s.d_state[0] * slope;
    }
};

}  // namespace
