// A network of one recurrent layer and one linear layer over it, which reads tokens (one-hot
// vectors) and gives the probability of each of its outputs at every step. All in float64.

const PARAMETERS = {
    weight_ih_l0: (s) => [s.gates * s.H, s.inputs],
    weight_hh_l0: (s) => [s.gates * s.H, s.H],
    bias_ih_l0: (s) => [s.gates * s.H],
    bias_hh_l0: (s) => [s.gates * s.H],
    weight: (s) => [s.outputs, s.H], // of the linear layer
    bias: (s) => [s.outputs],
};

// All parameters in one array, and each by its name in torch.nn, row by row.
function parameters(sizes) {
    const lengths = Object.values(PARAMETERS).map((shape) => shape(sizes).reduce((a, b) => a * b));
    const flat = new Float64Array(lengths.reduce((a, b) => a + b));
    const named = { flat };
    let from = 0;
    Object.keys(PARAMETERS).forEach((name, n) => {
        named[name] = flat.subarray(from, (from += lengths[n]));
    });
    return named;
}

function network(kind, inputs, H, outputs) {
    const cell = CELLS[kind];
    const sizes = { inputs, H, outputs, gates: cell.gates };
    return { kind, cell, ...sizes, theta: parameters(sizes), gradient: parameters(sizes) };
}

// Run over tokens [T, B], an Int32Array. Returns the states after each step, from the zeros before
// the first (at 0), each [B, H].
function forward(net, tokens, T, B) {
    const { cell, H, inputs } = net;
    const G = cell.gates * H;
    const p = net.theta;
    const a = new Float64Array(G);
    const u = new Float64Array(G);
    const states = [state(cell, B, H)];
    for (let t = 0; t < T; t += 1) {
        const before = states[t];
        const now = state(cell, B, H);
        for (let b = 0, at = 0; b < B; b += 1, at += H) {
            const token = tokens[t * B + b];
            for (let g = 0, w = 0; g < G; g += 1) {
                a[g] = p.bias_ih_l0[g] + p.weight_ih_l0[g * inputs + token];
                let sum = p.bias_hh_l0[g];
                for (let j = 0; j < H; j += 1, w += 1) sum += p.weight_hh_l0[w] * before.h[at + j];
                u[g] = sum;
            }
            cell.forward(H, a, u, now, at, before);
        }
        states.push(now);
    }
    return { tokens, T, B, states };
}

function state(cell, B, H) {
    return {
        h: new Float64Array(B * H),
        c: cell.hasCell ? new Float64Array(B * H) : null,
        kept: new Float64Array(B * H * cell.keeps),
    };
}

// The probabilities of the outputs after step t, [B, outputs].
function probabilities(net, run, t) {
    const { H, outputs } = net;
    const { weight, bias } = net.theta;
    const h = run.states[t + 1].h;
    const found = new Float64Array(run.B * outputs);
    for (let b = 0; b < run.B; b += 1) {
        let sum = 0;
        for (let k = 0; k < outputs; k += 1) {
            let logit = bias[k];
            for (let j = 0; j < H; j += 1) logit += weight[k * H + j] * h[b * H + j];
            sum += found[b * outputs + k] = Math.exp(logit);
        }
        for (let k = 0; k < outputs; k += 1) found[b * outputs + k] /= sum;
    }
    return found;
}
