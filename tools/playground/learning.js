// Initial weights, and Adam.

// Drawn as torch.nn draws them, all from U(-1/√H, 1/√H). Those made to remember also have an
// orthogonal matrix in the RNN and the GRU's new gate, and a bias of 1 in the GRU's reset gate, of
// 2 in the LSTM's forget gate.
const STARTS = { remembering: "made to remember", torch: "as torch.nn’s" };

function start(net, how, seed) {
    const random = new Random(seed);
    const { theta, H, kind } = net;
    const bound = 1 / Math.sqrt(H);
    for (let n = 0; n < theta.flat.length; n += 1)
        theta.flat[n] = bound * (2 * random.uniform() - 1);
    if (how === "torch") return;
    if (kind !== "LSTM")
        orthogonal(theta.weight_hh_l0.subarray((net.gates - 1) * H * H), H, random);
    theta.bias_hh_l0.fill(0);
    if (kind === "GRU") theta.bias_ih_l0.fill(1, 0, H);
    if (kind === "LSTM") theta.bias_ih_l0.fill(2, H, 2 * H);
}

// Rows of normal numbers, each made orthogonal to the ones before (Gram and Schmidt, twice).
function orthogonal(matrix, H, random) {
    for (let n = 0; n < H * H; n += 1) matrix[n] = random.normal();
    for (let row = 0; row < H; row += 1) {
        const own = matrix.subarray(row * H, (row + 1) * H);
        for (let pass = 0; pass < 2; pass += 1)
            for (let other = 0; other < row; other += 1) {
                const those = matrix.subarray(other * H, (other + 1) * H);
                const share = own.reduce((sum, x, j) => sum + x * those[j], 0);
                for (let j = 0; j < H; j += 1) own[j] -= share * those[j];
            }
        const size = Math.hypot(...own);
        for (let j = 0; j < H; j += 1) own[j] /= size;
    }
}

// So large that the steps stay small once the gradient is tiny: with 1e-8 an RNN that has learnt
// the long sentence forgets it again some hundred updates later.
const EPSILON = 1e-5;

// Kingma and Ba (2015), with the gradient's norm cut to `most` (Pascanu and others, 2013).
class Adam {
    constructor(net, rate, most = 1) {
        const zeros = () => new Float64Array(net.theta.flat.length);
        Object.assign(this, { net, rate, most, mean: zeros(), square: zeros(), updates: 0 });
    }

    update() {
        const { mean, square } = this;
        const [theta, g] = [this.net.theta.flat, this.net.gradient.flat];
        const norm = Math.sqrt(g.reduce((sum, x) => sum + x * x, 0));
        const scale = Math.min(1, this.most / norm);
        this.updates += 1;
        const size = (this.rate * Math.sqrt(1 - 0.999 ** this.updates)) / (1 - 0.9 ** this.updates);
        for (let n = 0; n < theta.length; n += 1) {
            const x = scale * g[n];
            mean[n] += 0.1 * (x - mean[n]);
            square[n] += 0.001 * (x * x - square[n]);
            theta[n] -= (size * mean[n]) / (Math.sqrt(square[n]) + EPSILON);
        }
    }
}
