// The first part: two networks that learn the copy task, side by side.

const SIDES = ["a", "b"];
const LEARNT = 0.95;
const PRESETS = {
    long: {
        name: "Too short, long enough",
        lag: 12,
        weights: "remembering",
        a: { cell: "RNN", reach: 6 },
        b: { cell: "RNN", reach: 15 },
    },
    itself: {
        name: "Too short, and learnt",
        lag: 8,
        weights: "remembering",
        a: { cell: "LSTM", reach: 4 },
        b: { cell: "LSTM", reach: 15 },
    },
    vanishing: {
        name: "Long enough, not learnt",
        lag: 20,
        weights: "remembering",
        a: { cell: "RNN", reach: 25 },
        b: { cell: "LSTM", reach: 25 },
    },
};

class CopyView extends View {
    constructor() {
        super("copy-status");
        this.options = structuredClone(PRESETS.long);
        this.build();
        this.reset();
    }

    reset() {
        const { lag, weights } = this.options;
        this.learners = SIDES.map((s) => new CopyLearner({ lag, weights, ...this.options[s] }));
        const one = copies(lag, 1, new Random(5));
        this.tokens = [...one.tokens].map((k) => TOKENS[k]);
        this.targets = [...one.targets].map((k) => TOKENS[k]);
        this.learnt = [false, false];
        this.draw();
        this.buttons();
    }

    // Both networks, by one update.
    update() {
        this.learners.forEach((learner, n) => {
            learner.update();
            if (this.learnt[n] || learner.curve.at(-1).letter < LEARNT) return;
            this.learnt[n] = true;
            const where = n ? "Second" : "First";
            this.announce.say(
                `${where} network: ${percent(LEARNT)} of letters right after ` +
                    `${updatesOf(learner)}.`,
            );
        });
    }

    summary() {
        const each = this.learners.map((l) => percent(l.curve.at(-1).letter));
        const when = updatesOf(this.learners[0]);
        return (
            `After ${when}: ${each[0]} of letters right in the first network, ` +
            `${each[1]} in the second.`
        );
    }

    // A new lag, cell or kind of weights begins anew; a new reach goes on with what is learnt.
    change(changes) {
        Object.assign(this.options, changes);
        this.reset();
    }

    preset(key) {
        this.options = structuredClone(PRESETS[key]);
        this.inputs.lag.put(this.options.lag);
        this.inputs.weights.put(this.options.weights);
        for (const s of SIDES) {
            this.inputs[s].cell.put(this.options[s].cell);
            this.inputs[s].reach.put(this.options[s].reach);
        }
        this.restart();
    }

    build() {
        this.inputs = {};
        this.clock = el("p", { class: "clock" });
        this.go = button("copy-run", "Run", () => this.toggle(), { class: "go" });
        this.chart = el("div", { id: "copy-chart" });
        this.panels = SIDES.map((side) => this.panel(side));
        this.node = el(
            "section",
            { class: "lesson", id: "copying", "aria-labelledby": "copying-title" },
            el("h2", { id: "copying-title" }, "Remember a letter"),
            ...COPY_WORDS.map((text) => el("p", {}, ...rich(text))),
            this.desk(),
            el("div", { class: "pair" }, ...this.panels.map((p) => p.node)),
            legend(),
            el("figure", { class: "curves" }, this.chart, el("figcaption", {}, CHART_WORDS)),
            this.announce,
        );
    }

    desk() {
        const { options, inputs } = this;
        const presets = Object.entries(PRESETS).map(([key, { name }]) =>
            button(`preset-${key}`, name, () => this.preset(key)),
        );
        inputs.lag = slider(
            "lag",
            "Lag: steps from the letter to “?”",
            { min: 2, max: 20, value: options.lag },
            (lag) => this.change({ lag }),
        );
        inputs.weights = choice("weights", "Initial weights", STARTS, options.weights, (weights) =>
            this.change({ weights }),
        );
        const speed = slider(
            "speed",
            "Updates",
            { min: 0, max: 3, value: this.clockwork.speed, write: (n) => SPEEDS[n].name },
            (n) => (this.clockwork.speed = n),
        );
        const reset = button("copy-reset", "Reset", () => this.restart());
        const step = button("copy-step", "One update", () => this.step());
        return el(
            "div",
            {},
            el(
                "div",
                { class: "desk buttons", role: "group", "aria-label": "Examples" },
                ...presets,
            ),
            el(
                "div",
                { class: "desk" },
                el("div", { class: "buttons" }, this.go, step, reset),
                speed,
                inputs.lag,
                inputs.weights,
                this.clock,
            ),
        );
    }

    panel(side) {
        const own = this.options[side];
        const name = side === "a" ? "first" : "second";
        const cell = choice(`cell-${side}`, "Cell", KINDS, own.cell, (value) =>
            this.change({ [side]: { ...this.options[side], cell: value } }),
        );
        const reach = slider(
            `reach-${side}`,
            "Reach of the credit",
            { min: 1, max: 25, value: own.reach },
            (value) => {
                this.options[side].reach = value;
                this.learners[SIDES.indexOf(side)].reach = value;
                this.draw();
            },
        );
        this.inputs[side] = { cell, reach };
        const parts = {
            title: el("h3", { id: `title-${side}` }),
            says: el("p", { class: "says" }),
            letter: el("dd", {}),
            digits: el("dd", {}),
            matrix: el("figure", { id: `matrix-${side}` }),
        };
        const node = el(
            "div",
            { class: "panel", role: "group", "aria-label": `The ${name} network` },
            parts.title,
            el("div", { class: "desk" }, cell, reach),
            parts.says,
            el(
                "dl",
                { class: "scores" },
                el("div", {}, el("dt", {}, "Letter right at “?”"), parts.letter),
                el("div", {}, el("dt", {}, "Digits right"), parts.digits),
            ),
            parts.matrix,
        );
        return { node, ...parts };
    }

    buttons() {
        this.go.textContent = this.clockwork.running ? "Pause" : "Run";
    }

    draw() {
        const [first] = this.learners;
        this.clock.textContent = updatesOf(first);
        this.learners.forEach((learner, n) => this.drawPanel(learner, this.panels[n]));
        drawCurves(this.chart, this.learners);
    }

    drawPanel(learner, parts) {
        const { lag, reach } = learner;
        const { letter, digits } = learner.curve.at(-1);
        const missing = lag + 1 - reach;
        parts.title.textContent = learner.reachesLetter
            ? "Long enough"
            : `Too short by ${missing} ${missing === 1 ? "step" : "steps"}`;
        parts.letter.textContent = percent(letter);
        parts.letter.className = letter >= LEARNT ? "good" : letter < 2 * CHANCE ? "bad" : "";
        parts.digits.textContent = percent(digits);
        const look = learner.look();
        const share = look.norms[lag * look.T] / greatest(look.norms.subarray(lag * look.T));
        parts.says.textContent = learner.reachesLetter
            ? `The loss at “?” is credited to all ${lag + 1} steps. ` +
              `At the letter, ${shareOf(share)} of its largest norm is left.`
            : `The loss at “?” is credited to the last ${reach} of ${lag + 1} steps. ` +
              `The state before them tells ${percent(look.told[lag - reach])} of letters.`;
        drawMatrix(parts.matrix, {
            tokens: this.tokens,
            targets: this.targets,
            look,
            reach,
            label:
                `Gradient of each step’s loss at each step’s state. Of the loss at “?”, ` +
                `${shareOf(share)} of the largest norm is left at the letter, ` +
                `${learner.reachesLetter ? "within" : "outside"} the credit. ` +
                `The state before “?” tells ${percent(look.told[lag - 1])} of letters.`,
        });
    }
}

// Right answers over updates, of both.
function drawCurves(host, learners) {
    const most = Math.max(200, learners[0].updates);
    const chart = new Chart(host, {
        height: 190,
        x: { from: 0, to: most },
        y: { from: 0, to: 1.02 },
        label: learners
            .map((l, n) => `${n ? "second" : "first"} network: ${percent(l.curve.at(-1).letter)}`)
            .join(", "),
    });
    chart.xAxis(wholeTicks(0, most, 5), "updates");
    chart.yAxis([0, 0.5, 1], percent);
    chart.line(
        [
            [0, CHANCE],
            [most, CHANCE],
        ],
        { class: "chance" },
    );
    learners.forEach((learner, n) => {
        const side = `curve-${SIDES[n]}`;
        const points = (key) => learner.curve.map((p) => [p.updates, p[key]]);
        chart.line(points("digits"), { class: `${side} thin` });
        chart.line(points("letter"), { class: side });
    });
}

function legend() {
    const box = (...inner) =>
        svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, ...inner);
    const rect = (options) => svg("rect", { x: 1, y: 1, width: 14, height: 14, ...options });
    const bar = svg("svg", { width: 70, height: 12, "aria-hidden": "true", class: "shades" });
    return el(
        "p",
        { class: "key" },
        el("span", {}, bar, ...rich("‖∂L_t/∂h_i‖, from 10⁻⁴ of the row’s largest to all of it")),
        el("span", {}, box(rect({ fill: "url(#hatch)" })), "cut by the credit"),
        el("span", {}, box(rect({ class: "need" })), "what must be learnt: “?” and its letter"),
    );
}

// The scale in the colours of the theme.
function drawShades() {
    for (const bar of document.querySelectorAll(".shades"))
        bar.replaceChildren(
            ...Array.from({ length: 14 }, (_, n) =>
                svg("rect", {
                    x: 5 * n,
                    width: 5,
                    height: 12,
                    fill: shade(10 ** ((n / 13 - 1) * DECADES), 1),
                }),
            ),
        );
}
