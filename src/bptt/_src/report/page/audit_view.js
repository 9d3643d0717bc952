// What is looked at: the report, and one object that says where.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const MEAN = "mean";

const view = {
    of: REPORT.sequences.length > 1 ? MEAN : 0, // the mean, or a sequence by its place
    t: REPORT.steps - 1, // the loss
    s: null, // a step that is pointed at
    held: false, // whether both stay while others are pointed at
    calls: true,
    ends: true,
};

// The matrices that can be shown, each unpacked when it is first looked at.
class Weights {
    constructor(name, packed) {
        Object.assign(this, { name, packed });
        this.full = new Map();
    }

    // As float64, row by row.
    get(of) {
        if (!this.full.has(of))
            this.full.set(of, unpack(of === MEAN ? this.packed.mean : this.packed.each[of]));
        return this.full.get(of);
    }

    at(of, t, s) {
        return this.get(of)[t * REPORT.steps + s];
    }
}

function unpack(rows) {
    const T = REPORT.steps;
    const full = new Float64Array(T * T);
    rows.forEach((runs, t) => {
        let s = 0;
        for (let n = 0; n < runs.length; n += 2) {
            full.fill(runs[n + 1], t * T + s, t * T + s + runs[n]);
            s += runs[n];
        }
    });
    return full;
}

const CREDIT = new Weights("credit", REPORT.credit);
const MEMORY = new Weights("memory", REPORT.memory);

// Places of the sequences that are shown.
function shownSequences() {
    return view.of === MEAN ? REPORT.sequences.map((_, q) => q) : [view.of];
}

// What a step is called; in the page steps count from 0.
function called(step) {
    return step + REPORT.start;
}

// Whether an episode begins after step s and up to step t, in every sequence shown, or in some.
function isAcross(t, s, all) {
    const across = (q) => REPORT.ends[q].some((end) => s < end && end <= t);
    return all ? shownSequences().every(across) : shownSequences().some(across);
}

// The findings whose place in a matrix this is.
function findingsAt(matrix, t, s) {
    const here = (f) => f.t === called(t) && f.s === called(s) && isShown(f.sequence);
    return REPORT.findings.filter((f) => f.matrices.includes(matrix) && here(f));
}

function isShown(sequence) {
    if (view.of === MEAN || sequence === null) return true;
    return REPORT.sequences[view.of] === String(sequence);
}

// What the address says after #, as in audit.html#t=12&s=9&sequence=0&in=credit.
function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const step = (name) => {
        const value = Number(given.get(name));
        return given.get(name) && Number.isInteger(value)
            ? clamp(value - REPORT.start, 0, REPORT.steps - 1)
            : null;
    };
    const changes = {};
    if (given.has("t")) Object.assign(changes, { t: step("t") ?? view.t, s: step("s"), held: true });
    const place = REPORT.sequences.indexOf(given.get("sequence"));
    if (place >= 0) changes.of = place;
    if (["light", "dark"].includes(given.get("theme")))
        document.documentElement.dataset.theme = given.get("theme");
    return changes;
}

// The address of a finding's place, and the matrix in which it is one.
function addressOf({ t, s, sequence, matrices }) {
    const parts = { t, s, sequence, in: matrices[0] };
    const given = Object.entries(parts).filter(([, value]) => value !== null);
    return `#${new URLSearchParams(given)}`;
}
