// The elementwise part of each cell, for a range of hidden units of one row. Compare with the
// twin's (kernels/twin.py) and with the equations in bptt/cells.
#pragma once
#include "vector.h"

namespace {

// Where a row's values lie. Gates and what is kept have room for whole vectors; what comes from
// outside, and the deltas, end with the last unit.
template <class T> struct ForwardRow {
    T *gate[4];          // in: W x + W h, without biases (the GRU's n: without W h); out: gates
    const T *bias[4];    // of each gate, and of q as the GRU's last
    const T *h_before;   // h_{t-1}
    const T *c_before;   // LSTM: c_{t-1}, or null where the state is reset
    T *c;                // LSTM: c_t
    T *extra;            // GRU: q without its bias, then with it; LSTM: c_t to keep, or null
    T *y;                // h_t
};

template <class T> struct BackwardRow {
    const T *gate[4], *extra;        // as the forward pass left them
    const T *y;                      // h_t
    const T *h_before, *c_before;    // or null where the state was reset
    T *dh;                           // in: ∂L/∂h_t; GRU: out: what of ∂L/∂h_{t-1} is not through W
    T *dc;                           // LSTM: in: ∂L/∂c_t, out: ∂L/∂c_{t-1}
    T *delta[4];                     // out: of W h; the GRU's last is that of n, of W x
    T *sum[4];                       // of the deltas over all rows: biases' gradients; in, out
};

template <class T> inline void put(const BackwardRow<T> &r, int gate, int64_t u, V<T> d, int64_t n) {
    store(r.delta[gate] + u, d, n);
    store(r.sum[gate] + u, load(r.sum[gate] + u) + d);
}

enum class Phi { TANH, RELU, SIGMOID };

// h = φ(a)
template <Phi PHI> struct Elman {
    static constexpr int GATES = 1, DELTAS = 1;
    static constexpr bool KEEPS_GATES = false, KEEPS_EXTRA = false, HAS_C = false, HAS_Q = false;

    template <class T> static void forward(const ForwardRow<T> &r, int64_t u, int64_t H) {
        const V<T> a = load(r.gate[0] + u, H - u) + load(r.bias[0] + u);
        V<T> h;
        if (PHI == Phi::TANH) h = tanh_<T>(a);
        else if (PHI == Phi::RELU) h = a < T(0) ? V<T>{} : a;
        else h = sigmoid<T>(a);
        store(r.y + u, h, H - u);
    }

    template <class T> static void backward(const BackwardRow<T> &r, int64_t u, int64_t H) {
        const V<T> h = load(r.y + u, H - u);
        V<T> slope;
        if (PHI == Phi::TANH) slope = T(1) - h * h;
        else if (PHI == Phi::RELU) slope = h <= T(0) ? V<T>{} : all<T>(1);
        else slope = h * (T(1) - h);
        put(r, 0, u, load(r.dh + u) * slope, H - u);
    }
};

// r, z; q = W h + b; n = tanh(a_n + r q); h = (1 - z) n + z h_before
struct Gru {
    static constexpr int GATES = 3, DELTAS = 4;
    static constexpr bool KEEPS_GATES = true, KEEPS_EXTRA = true, HAS_C = false, HAS_Q = true;

    template <class T> static void forward(const ForwardRow<T> &g, int64_t u, int64_t H) {
        const V<T> r = sigmoid<T>(load(g.gate[0] + u) + load(g.bias[0] + u));
        const V<T> z = sigmoid<T>(load(g.gate[1] + u) + load(g.bias[1] + u));
        const V<T> q = load(g.extra + u) + load(g.bias[3] + u);
        const V<T> n = tanh_<T>(load(g.gate[2] + u) + load(g.bias[2] + u) + r * q);
        store(g.gate[0] + u, r);
        store(g.gate[1] + u, z);
        store(g.gate[2] + u, n);
        store(g.extra + u, q);
        store(g.y + u, n + z * (load(g.h_before + u, H - u) - n), H - u);
    }

    template <class T> static void backward(const BackwardRow<T> &g, int64_t u, int64_t H) {
        const V<T> r = load(g.gate[0] + u), z = load(g.gate[1] + u), n = load(g.gate[2] + u);
        const V<T> q = load(g.extra + u), dh = load(g.dh + u);
        const V<T> before = g.h_before ? load(g.h_before + u, H - u) : V<T>{};
        const V<T> dn = dh * (T(1) - z) * (T(1) - n * n);
        put(g, 0, u, dn * q * r * (T(1) - r), H - u);
        put(g, 1, u, dh * (before - n) * z * (T(1) - z), H - u);
        put(g, 2, u, dn * r, H - u);
        put(g, 3, u, dn, H - u);
        store(g.dh + u, dh * z);
    }
};

// i, f, g, o; c = f c_before + i g; h = o tanh(c)
struct Lstm {
    static constexpr int GATES = 4, DELTAS = 4;
    static constexpr bool KEEPS_GATES = true, KEEPS_EXTRA = true, HAS_C = true, HAS_Q = false;

    template <class T> static void forward(const ForwardRow<T> &r, int64_t u, int64_t H) {
        const V<T> i = sigmoid<T>(load(r.gate[0] + u) + load(r.bias[0] + u));
        const V<T> f = sigmoid<T>(load(r.gate[1] + u) + load(r.bias[1] + u));
        const V<T> g = tanh_<T>(load(r.gate[2] + u) + load(r.bias[2] + u));
        const V<T> o = sigmoid<T>(load(r.gate[3] + u) + load(r.bias[3] + u));
        const V<T> before = r.c_before ? load(r.c_before + u) : V<T>{};
        const V<T> c = f * before + i * g;
        store(r.gate[0] + u, i);
        store(r.gate[1] + u, f);
        store(r.gate[2] + u, g);
        store(r.gate[3] + u, o);
        store(r.c + u, c);
        if (r.extra) store(r.extra + u, c);
        store(r.y + u, o * tanh_<T>(c), H - u);
    }

    template <class T> static void backward(const BackwardRow<T> &r, int64_t u, int64_t H) {
        const V<T> i = load(r.gate[0] + u), f = load(r.gate[1] + u);
        const V<T> g = load(r.gate[2] + u), o = load(r.gate[3] + u);
        const V<T> tanh_c = tanh_<T>(load(r.extra + u)), dh = load(r.dh + u);
        const V<T> before = r.c_before ? load(r.c_before + u, H - u) : V<T>{};
        const V<T> dc = load(r.dc + u) + dh * o * (T(1) - tanh_c * tanh_c);
        put(r, 0, u, dc * g * i * (T(1) - i), H - u);
        put(r, 1, u, dc * before * f * (T(1) - f), H - u);
        put(r, 2, u, dc * i * (T(1) - g * g), H - u);
        put(r, 3, u, dh * tanh_c * o * (T(1) - o), H - u);
        store(r.dc + u, dc * f);
    }
};

}  // namespace
