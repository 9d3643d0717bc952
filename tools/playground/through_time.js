// Backpropagation through time with a credit: the loss of step t reaches the steps after t - reach.
//
// Each loss that is cut somewhere has its own gradient on the way back, since others go on where it
// ends. Those that reach the first step uncut travel together.

// Add the gradient of Σ_t mean_b L_{t,b} to net.gradient and return the losses, [T]; L is the
// cross entropy of targets [T, B], and there is no loss where the target is -1.
//
// With `norms`, [T, T], no loss is cut, and norms[t, i] becomes the mean over the sequences of
// ‖∂L_{t,b}/∂(h, c)_{i,b}‖, where the state after step i is meant.
function backward(net, run, targets, reach, norms = null) {
    const { T, B } = run;
    const losses = new Float64Array(T);
    const work = workspace(net);
    const travelling = new Map(); // by the loss's step; the uncut ones at -1
    for (let i = T - 1; i >= 0; i -= 1) {
        const own = norms ? i : i < reach ? -1 : i;
        if (hasLoss(targets, i, B)) {
            if (!travelling.has(own)) travelling.set(own, arriving(net, B));
            losses[i] = lossOf(net, run, targets, i, travelling.get(own).h);
        }
        if (!norms) travelling.delete(i + reach);
        for (const [t, d] of travelling) {
            if (norms) norms[t * T + i] = meanNorm(d, B, net.H);
            stepBack(net, run, i, d, work);
        }
    }
    return losses;
}

function hasLoss(targets, t, B) {
    return targets.subarray(t * B, (t + 1) * B).some((target) => target >= 0);
}

function arriving(net, B) {
    const zeros = () => new Float64Array(B * net.H);
    return { h: zeros(), c: net.cell.hasCell ? zeros() : null };
}

function workspace(net) {
    const gates = () => new Float64Array(net.gates * net.H);
    return { da: gates(), du: gates() };
}

// The loss of step t; adds its gradient to the linear layer's, and that of the state to dh.
function lossOf(net, run, targets, t, dh) {
    const { H, outputs } = net;
    const { B } = run;
    const h = run.states[t + 1].h;
    const p = probabilities(net, run, t);
    let loss = 0;
    for (let b = 0; b < B; b += 1) {
        const target = targets[t * B + b];
        if (target < 0) continue;
        loss -= Math.log(p[b * outputs + target]) / B;
        for (let k = 0; k < outputs; k += 1) {
            const d = (p[b * outputs + k] - (k === target ? 1 : 0)) / B;
            net.gradient.bias[k] += d;
            for (let j = 0; j < H; j += 1) {
                net.gradient.weight[k * H + j] += d * h[b * H + j];
                dh[b * H + j] += d * net.theta.weight[k * H + j];
            }
        }
    }
    return loss;
}

// Take a gradient of the states after step i to those before it, and add the cell's parameters'.
function stepBack(net, run, i, d, { da, du }) {
    const { cell, H, inputs } = net;
    const G = cell.gates * H;
    const [now, before] = [run.states[i + 1], run.states[i]];
    const { weight_hh_l0: W } = net.theta;
    const g = net.gradient;
    for (let b = 0, at = 0; b < run.B; b += 1, at += H) {
        cell.back(H, now, at, before, d.h, d.c, da, du);
        const token = run.tokens[i * run.B + b];
        for (let k = 0, w = 0; k < G; k += 1) {
            g.weight_ih_l0[k * inputs + token] += da[k];
            g.bias_ih_l0[k] += da[k];
            g.bias_hh_l0[k] += du[k];
            const v = du[k];
            for (let j = 0; j < H; j += 1, w += 1) {
                d.h[at + j] += W[w] * v;
                g.weight_hh_l0[w] += v * before.h[at + j];
            }
        }
    }
}

function meanNorm(d, B, H) {
    let mean = 0;
    for (let b = 0; b < B; b += 1) {
        let square = 0;
        for (let j = b * H; j < (b + 1) * H; j += 1)
            square += d.h[j] ** 2 + (d.c ? d.c[j] ** 2 : 0);
        mean += Math.sqrt(square); // of a loss that is divided by B already
    }
    return mean;
}
