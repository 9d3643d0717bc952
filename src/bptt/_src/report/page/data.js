// The flows as they lie in the page: matrices unpacked, and what is asked of them.

const NONE = NaN;

// float32 values of the entries s ≤ t, row by row, as a full matrix; NaN elsewhere.
function unpack(text, ends, columns) {
    const raw = atob(text);
    const bytes = Uint8Array.from(raw, (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const full = new Float64Array(ends.length * columns).fill(NONE);
    let place = 0;
    ends.forEach((end, row) => {
        for (let column = 0; column <= end; column += 1, place += 4) {
            full[row * columns + column] = view.getFloat32(place, true);
        }
    });
    return full;
}

// One matrix that can be shown: logs holds log10 of the sizes, signs only where there are any.
class Measure {
    constructor(key, label, run, values, signed) {
        Object.assign(this, { key, label, run, signed });
        this.logs = signed ? values.map((v) => Math.log10(Math.abs(v))) : values;
        this.signs = signed ? values.map(Math.sign) : null;
        this.tops = Array.from({ length: run.rows }, (_, row) => greatest(run.row(this.logs, row)));
        this.top = greatest(this.tops);
    }

    log(row, column) {
        return this.logs[row * this.run.columns + column];
    }

    sign(row, column) {
        return this.signs ? this.signs[row * this.run.columns + column] : 1;
    }

    value(row, column) {
        const log = this.log(row, column);
        return Number.isNaN(log) ? NONE : this.sign(row, column) * 10 ** log;
    }
}

class Run {
    constructor(raw, index) {
        Object.assign(this, { raw, index, name: raw.name, steps: raw.steps, times: raw.times });
        this.block = raw.block;
        this.rows = Math.ceil(raw.times.length / raw.rows);
        this.columns = Math.ceil(raw.steps / raw.block);
        this.exact = raw.block === 1 && raw.rows === 1;
        const ends = Array.from({ length: this.rows }, (_, r) =>
            this.columnAt(this.rowTimes(r).at(-1)),
        );
        const layers = new Set(raw.states.map((s) => s.layer)).size;
        this.measures = raw.states.map((s) => {
            const label = (layers > 1 ? `layer ${s.layer + 1}, ` : "") + stateName(s.name);
            const values = unpack(s.norms, ends, this.columns);
            return new Measure(`${s.layer}/${s.name}`, label, this, values, false);
        });
        this.states = [...this.measures];
        if (raw.attribution !== null && raw.attribution !== undefined) {
            const values = unpack(raw.attribution, ends, this.columns);
            const label = "attribution to the inputs";
            this.measures.push(new Measure("attribution", label, this, values, true));
        }
        this.isText = Boolean(raw.tokens);
        this.words = this.#words();
        this.curves = new Map();
    }

    // The words shown, and which of them a step's loss is about: the next one where the targets are
    // the text itself, one step on; else the word fed in.
    #words() {
        const { tokens, targets, steps } = this.raw;
        if (!tokens) return Array.from({ length: steps }, (_, s) => String(s));
        this.ahead = Boolean(targets) && targets.slice(0, -1).every((w, s) => w === tokens[s + 1]);
        return this.ahead ? [...tokens, targets.at(-1)] : tokens;
    }

    row(values, row) {
        return values.subarray(row * this.columns, (row + 1) * this.columns);
    }

    rowTimes(row) {
        return this.times.slice(row * this.raw.rows, (row + 1) * this.raw.rows);
    }

    columnAt(s) {
        return Math.floor(s / this.block);
    }

    // The row of the last loss followed at or before step t; the first if there is none.
    rowAt(t) {
        let place = this.times.length - 1;
        while (place > 0 && this.times[place] > t) place -= 1;
        return Math.floor(place / this.raw.rows);
    }

    timeAt(t) {
        const earlier = this.times.filter((time) => time <= t);
        return earlier.length ? earlier.at(-1) : this.times[0];
    }

    loss(row) {
        const losses = this.raw.losses.slice(row * this.raw.rows, (row + 1) * this.raw.rows);
        return losses.includes(null) ? null : mean(losses);
    }

    measure(key) {
        const layer = key.split("/")[0];
        return (
            this.measures.find((m) => m.key === key) ||
            this.measures.find((m) => m.key.startsWith(`${layer}/`)) ||
            this.measures[0]
        );
    }

    token(s) {
        return this.isText ? this.raw.tokens[s] : null;
    }

    target(t) {
        return this.raw.targets ? this.raw.targets[t] : null;
    }
}

// The first step that the loss of step t is credited to: Williams and Peng's BPTT(reach; every).
function since(t, every, reach) {
    return Math.max(0, (Math.floor(t / every) + 1) * every - reach);
}

// How the losses' blocks follow from the reach, by the name of the kind of credit.
const EVERY = {
    blocks: (reach) => reach,
    half: (reach) => Math.ceil(reach / 2),
    window: () => 1,
};

// The share of the summed sizes that a credit leaves out, for every reach from 1 to T.
function lostCurve(run, measure, kind) {
    const key = `${measure.key} ${kind}`;
    if (!run.curves.has(key)) {
        const sums = running(run, measure);
        const rowOf = (n) => sums[Math.floor(n / run.raw.rows)];
        const all = run.times.reduce((sum, t, n) => sum + upTo(run, rowOf(n), t + 1), 0);
        const curve = Array.from({ length: run.steps }, (_, n) => {
            const reach = n + 1;
            const every = EVERY[kind](reach);
            let lost = 0;
            run.times.forEach((t, n) => (lost += upTo(run, rowOf(n), since(t, every, reach))));
            return all > 0 ? Math.max(0, lost / all) : 0;
        });
        run.curves.set(key, curve);
    }
    return run.curves.get(key);
}

// Sums of the sizes along each row, over the greatest size; a block counts once for each step.
function running(run, measure) {
    return Array.from({ length: run.rows }, (_, row) => {
        const sums = [0];
        for (let c = 0; c < run.columns; c += 1) {
            const log = measure.log(row, c);
            const size = Number.isNaN(log) ? 0 : 10 ** (log - measure.top);
            sums.push(sums.at(-1) + size * run.block);
        }
        return sums;
    });
}

// The sum of a row over the steps before `end`; within a block every step has its mean.
function upTo(run, row, end) {
    const column = run.columnAt(end);
    const rest = end - column * run.block;
    return rest ? row[column] + ((row[column + 1] - row[column]) * rest) / run.block : row[column];
}

function stateName(name) {
    return { hidden: "hidden state", cell: "cell state" }[name] || name;
}
