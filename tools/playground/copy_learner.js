// A network that learns the copy task, and what is measured of it. All of it follows from the
// options and the number of updates: nothing depends on the clock.

const HIDDEN = 24;
const BATCH = 16;
const RATE = 0.005;
const TESTED = 256; // new sequences, kept out of training
const EVERY = 10; // updates between two points of the curve
const CHANCE = 1 / LETTERS.length;

class CopyLearner {
    constructor({ cell, lag, reach, weights, seed = 1 }) {
        Object.assign(this, { cell, lag, reach, weights });
        this.net = network(cell, TOKENS.length, HIDDEN, ANSWERS);
        start(this.net, weights, seed);
        this.adam = new Adam(this.net, RATE);
        this.random = new Random(seed + 100);
        this.test = copies(lag, TESTED, new Random(7));
        this.curve = [];
        this.measure();
    }

    get updates() {
        return this.adam.updates;
    }

    // Whether the loss at "?" is credited to the step of the letter.
    get reachesLetter() {
        return this.reach > this.lag;
    }

    update() {
        const batch = copies(this.lag, BATCH, this.random);
        const run = forward(this.net, batch.tokens, batch.T, batch.B);
        this.net.gradient.flat.fill(0);
        backward(this.net, run, batch.targets, this.reach);
        this.adam.update();
        if (this.updates % EVERY === 0) this.measure();
    }

    // Add the shares of right answers to the curve.
    measure() {
        const { net, test, lag } = this;
        const run = forward(net, test.tokens, test.T, test.B);
        let digits = 0;
        for (let t = 1; t < lag; t += 1) digits += this.right(run, t) / (lag - 1);
        this.curve.push({ updates: this.updates, letter: this.right(run, lag), digits });
    }

    right(run, t) {
        const p = probabilities(this.net, run, t);
        let found = 0;
        for (let b = 0; b < run.B; b += 1) {
            const own = p.subarray(b * ANSWERS, (b + 1) * ANSWERS);
            if (own.indexOf(greatest(own)) === this.test.targets[t * run.B + b]) found += 1;
        }
        return found / run.B;
    }

    // ‖∂L_t/∂h_i‖ of all losses and steps, [T, T]; the letter told by the state, [T].
    look() {
        const { net, test } = this;
        const few = copies(this.lag, 16, new Random(11));
        const norms = new Float64Array(few.T * few.T);
        backward(net, forward(net, few.tokens, few.T, few.B), few.targets, few.T, norms);
        const run = forward(net, test.tokens, test.T, test.B);
        const letters = test.tokens.subarray(0, test.B);
        return { T: few.T, norms, told: remembered(net, run, letters, LETTERS.length) };
    }
}
