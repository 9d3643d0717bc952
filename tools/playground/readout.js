// What is remembered: how often a linear readout of the state after each step tells the class.

// The share of sequences whose class is told right, [T]. The readout is fitted by ridge regression
// to the first half of the sequences and tried on the second; classes [B] are 0 … kinds - 1.
function remembered(net, run, classes, kinds, ridge = 1e-3) {
    const half = run.B >> 1;
    const found = new Float64Array(run.T);
    for (let t = 0; t < run.T; t += 1) {
        const features = (b) => featuresOf(net, run.states[t + 1], b);
        const weights = fitted(features, classes, kinds, half, ridge);
        for (let b = half; b < run.B; b += 1) {
            const x = features(b);
            const scores = weights.map((w) => w.reduce((sum, v, j) => sum + v * x[j], 0));
            if (scores.indexOf(greatest(scores)) === classes[b]) found[t] += 1 / (run.B - half);
        }
    }
    return found;
}

// The whole state of one sequence and a 1: h, or h and c.
function featuresOf(net, { h, c }, b) {
    const H = net.H;
    const own = [...h.subarray(b * H, (b + 1) * H)];
    if (c) own.push(...c.subarray(b * H, (b + 1) * H));
    own.push(1);
    return own;
}

// The weights of each class: argmin of the squared error to 1 for its own, 0 for others.
function fitted(features, classes, kinds, n, ridge) {
    const width = features(0).length;
    const gram = Array.from({ length: width }, () => new Float64Array(width));
    const sums = Array.from({ length: kinds }, () => new Float64Array(width));
    for (let b = 0; b < n; b += 1) {
        const x = features(b);
        for (let i = 0; i < width; i += 1) {
            sums[classes[b]][i] += x[i];
            for (let j = 0; j <= i; j += 1) gram[i][j] += x[i] * x[j];
        }
    }
    for (let i = 0; i < width; i += 1) gram[i][i] += ridge * n;
    factorize(gram);
    return sums.map((right) => solved(gram, right));
}

// Cholesky, in place, in the lower triangle.
function factorize(matrix) {
    for (let i = 0; i < matrix.length; i += 1)
        for (let j = 0; j <= i; j += 1) {
            let sum = matrix[i][j];
            for (let k = 0; k < j; k += 1) sum -= matrix[i][k] * matrix[j][k];
            matrix[i][j] = i === j ? Math.sqrt(sum) : sum / matrix[j][j];
        }
}

function solved(lower, right) {
    const x = Float64Array.from(right);
    const n = x.length;
    for (let i = 0; i < n; i += 1) {
        for (let k = 0; k < i; k += 1) x[i] -= lower[i][k] * x[k];
        x[i] /= lower[i][i];
    }
    for (let i = n - 1; i >= 0; i -= 1) {
        for (let k = i + 1; k < n; k += 1) x[i] -= lower[k][i] * x[k];
        x[i] /= lower[i][i];
    }
    return x;
}
