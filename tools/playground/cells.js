// The cells, with torch.nn's equations and order of gates, for one sequence at one step.
//
// a = W_ih x + b_ih and u = W_hh h + b_hh hold all gates, [gates·H]. `forward` writes the new state
// at `at`, and what the backward pass needs into `kept`. `back` turns the gradient of the new
// state, dh and dc, into da and du. In place, dh becomes the part of the previous state's gradient
// that does not go through W_hh, and dc the previous cell's gradient.

function sigmoid(x) {
    return 1 / (1 + Math.exp(-x));
}

const CELLS = {
    RNN: {
        gates: 1,
        keeps: 0,
        hasCell: false,
        forward(H, a, u, now, at) {
            for (let j = 0; j < H; j += 1) now.h[at + j] = Math.tanh(a[j] + u[j]);
        },
        back(H, now, at, before, dh, dc, da, du) {
            for (let j = 0; j < H; j += 1) {
                const h = now.h[at + j];
                da[j] = du[j] = dh[at + j] * (1 - h * h);
                dh[at + j] = 0;
            }
        },
    },

    // r, z, n; kept: r, z, n and the part of u in n.
    GRU: {
        gates: 3,
        keeps: 4,
        hasCell: false,
        forward(H, a, u, now, at, before) {
            for (let j = 0, k = 4 * at; j < H; j += 1, k += 4) {
                const r = sigmoid(a[j] + u[j]);
                const z = sigmoid(a[H + j] + u[H + j]);
                const n = Math.tanh(a[2 * H + j] + r * u[2 * H + j]);
                now.h[at + j] = n + z * (before.h[at + j] - n);
                now.kept[k] = r;
                now.kept[k + 1] = z;
                now.kept[k + 2] = n;
                now.kept[k + 3] = u[2 * H + j];
            }
        },
        back(H, now, at, before, dh, dc, da, du) {
            for (let j = 0, k = 4 * at; j < H; j += 1, k += 4) {
                const [r, z, n] = [now.kept[k], now.kept[k + 1], now.kept[k + 2]];
                const d = dh[at + j];
                const dn = d * (1 - z) * (1 - n * n);
                da[j] = du[j] = dn * now.kept[k + 3] * r * (1 - r);
                da[H + j] = du[H + j] = d * (before.h[at + j] - n) * z * (1 - z);
                da[2 * H + j] = dn;
                du[2 * H + j] = dn * r;
                dh[at + j] = d * z;
            }
        },
    },

    // i, f, g, o; kept: i, f, g, o and tanh c.
    LSTM: {
        gates: 4,
        keeps: 5,
        hasCell: true,
        forward(H, a, u, now, at, before) {
            for (let j = 0, k = 5 * at; j < H; j += 1, k += 5) {
                const i = sigmoid(a[j] + u[j]);
                const f = sigmoid(a[H + j] + u[H + j]);
                const g = Math.tanh(a[2 * H + j] + u[2 * H + j]);
                const o = sigmoid(a[3 * H + j] + u[3 * H + j]);
                const c = f * before.c[at + j] + i * g;
                now.c[at + j] = c;
                const tanh = Math.tanh(c);
                now.h[at + j] = o * tanh;
                now.kept[k] = i;
                now.kept[k + 1] = f;
                now.kept[k + 2] = g;
                now.kept[k + 3] = o;
                now.kept[k + 4] = tanh;
            }
        },
        back(H, now, at, before, dh, dc, da, du) {
            for (let j = 0, k = 5 * at; j < H; j += 1, k += 5) {
                const i = now.kept[k];
                const f = now.kept[k + 1];
                const g = now.kept[k + 2];
                const o = now.kept[k + 3];
                const tanh = now.kept[k + 4];
                const d = dc[at + j] + dh[at + j] * o * (1 - tanh * tanh);
                da[j] = du[j] = d * g * i * (1 - i);
                da[H + j] = du[H + j] = d * before.c[at + j] * f * (1 - f);
                da[2 * H + j] = du[2 * H + j] = d * i * (1 - g * g);
                da[3 * H + j] = du[3 * H + j] = dh[at + j] * tanh * o * (1 - o);
                dc[at + j] = d * f;
                dh[at + j] = 0;
            }
        },
    },
};
