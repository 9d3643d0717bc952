// A matrix of weights: a row is a step t, a column a step s. The cells are on a canvas; calls,
// episodes, faults and the crosshair are in SVG above it.

const TOP = 22;
const BOTTOM = 40;

class WeightMap {
    constructor(weights, { rows, columns, said }) {
        Object.assign(this, { weights, rows, columns, said });
        this.canvas = el("canvas", { "aria-hidden": "true" });
        this.over = svg("svg", { "aria-hidden": "true" });
        this.readout = el("p", { class: "readout", role: "status" });
        this.frame = el(
            "div",
            {
                class: "frame",
                tabindex: 0,
                role: "application",
                "aria-roledescription": "heat map",
            },
            this.canvas,
            this.over,
        );
        this.node = el(
            "section",
            { class: "map", id: `map-${weights.name}`, "aria-label": weights.name },
            el("h3", {}, weights.name),
            this.frame,
            this.readout,
        );
        this.listen();
    }

    listen() {
        const { frame } = this;
        frame.addEventListener("pointermove", (e) => {
            if (!view.held && e.pointerType !== "touch") set(this.placeOf(e) ?? {});
        });
        frame.addEventListener("click", (e) => {
            const place = this.placeOf(e);
            if (!place) return;
            set({ ...place, held: !(view.held && place.t === view.t && place.s === view.s) });
        });
        frame.addEventListener("pointerleave", () => !view.held && set({ s: null }));
        frame.addEventListener("keydown", (e) => this.onKey(e));
    }

    placeOf(event) {
        const box = this.canvas.getBoundingClientRect();
        const { left, wide } = this.size;
        const x = (event.clientX - box.left - left) / wide;
        const y = (event.clientY - box.top - TOP) / wide;
        if (x < 0 || x >= 1 || y < 0 || y >= 1) return null;
        const t = Math.floor(y * REPORT.steps);
        const s = Math.floor(x * REPORT.steps);
        return { t, s: s <= t || REPORT.both_ways ? s : null };
    }

    onKey(event) {
        const last = (t) => (REPORT.both_ways ? REPORT.steps - 1 : t);
        const s = view.s ?? view.t;
        const aside = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (aside) set({ s: clamp(s + aside, 0, last(view.t)) });
        else if (down) {
            const t = clamp(view.t + down, 0, REPORT.steps - 1);
            set({ t, s: view.s === null ? null : Math.min(view.s, last(t)) });
        } else if (event.key === "Home") set({ s: 0 });
        else if (event.key === "End") set({ s: last(view.t) });
        else if (event.key === "Escape") set({ s: null, held: false });
        else if (event.key === "Enter" || event.key === " ") set({ held: !view.held });
        else return;
        event.preventDefault();
    }

    draw() {
        const left = 12 + 8 * String(called(REPORT.steps - 1)).length;
        const wide = clamp(this.node.clientWidth - left - 8, 160, 560);
        this.size = { left, wide };
        const [width, height] = [left + wide + 8, TOP + wide + BOTTOM];
        const dense = window.devicePixelRatio || 1;
        Object.assign(this.canvas, {
            width: Math.round(width * dense),
            height: Math.round(height * dense),
        });
        this.canvas.style.width = this.over.style.width = this.frame.style.width = `${width}px`;
        this.canvas.style.height = this.over.style.height = `${height}px`;
        this.over.setAttribute("viewBox", `0 0 ${width} ${height}`);
        const context = this.canvas.getContext("2d");
        context.scale(dense, dense);
        this.drawCells(context);
        this.drawOver();
    }

    drawCells(context) {
        const T = REPORT.steps;
        const values = this.weights.get(view.of);
        const image = new ImageData(T, T);
        values.forEach((w, n) => w && image.data.set([...colourOf(w), 255], 4 * n));
        const cells = el("canvas", { width: T, height: T });
        cells.getContext("2d").putImageData(image, 0, 0);
        const { left, wide } = this.size;
        context.imageSmoothingEnabled = T > wide; // else a narrow line might be left out
        context.drawImage(cells, left, TOP, wide, wide);
    }

    X(step) {
        return this.size.left + (step / REPORT.steps) * this.size.wide;
    }

    Y(step) {
        return TOP + (step / REPORT.steps) * this.size.wide;
    }

    drawOver() {
        this.over.replaceChildren(
            ...this.edges(),
            ...(view.calls ? this.calls() : []),
            ...this.cross(),
            ...(view.ends ? this.ends() : []),
            ...this.labels(),
            ...this.rings(),
        );
        const said = this.said(view.t, view.s);
        this.frame.setAttribute("aria-label", `${this.weights.name}. ${said}`);
        this.readout.replaceChildren(...this.inWords(said));
    }

    // The diagonal as stairs, and lines between few cells.
    edges() {
        const T = REPORT.steps;
        const path = (d, kind) => svg("path", { d, class: kind });
        const stairs = [[0, 0]];
        if (REPORT.both_ways)
            return [path(this.line([...stairs, [T, 0], [T, T], [0, T]], true), "rim")];
        if (T > 40) return [path(this.line([...stairs, [T, T], [0, T]], true), "rim")];
        let inner = "";
        for (let n = 0; n < T; n += 1) {
            stairs.push([n + 1, n], [n + 1, n + 1]);
            if (n) inner += this.beforeStep(n);
        }
        stairs.push([0, T]);
        return [path(inner, "between"), path(this.line(stairs, true), "rim")];
    }

    // A path through places (s, t).
    line(places, closed = false) {
        const at = places.map(([s, t]) => `${this.X(s).toFixed(1)} ${this.Y(t).toFixed(1)}`);
        return `M${at.join("L")}${closed ? "Z" : ""}`;
    }

    // Around what steps from n on have to do with those before.
    beforeStep(n) {
        return this.line([
            [0, n],
            [n, n],
            [n, REPORT.steps],
        ]);
    }

    // Around what steps from a up to b have to do with one another.
    within(a, b) {
        return this.line([
            [a, a],
            [a, b],
            [b, b],
        ]);
    }

    // Below the stairs, what lies within a call.
    calls() {
        const found = new Map();
        for (const q of shownSequences())
            for (const [a, b] of REPORT.calls[q]) found.set(`${a} ${b}`, this.within(a, b));
        const d = [...found.values()].join("");
        return d ? [svg("path", { d, class: "call" })] : [];
    }

    // Left and below, what lies in another episode; fainter, the fewer sequences end there.
    ends() {
        const shown = shownSequences();
        const found = new Map();
        for (const q of shown)
            for (const t of REPORT.ends[q]) found.set(t, (found.get(t) ?? 0) + 1);
        return [...found].map(([t, n]) =>
            svg("path", {
                d: this.beforeStep(t),
                class: "end-of-episode",
                opacity: (0.25 + (0.75 * n) / shown.length).toFixed(2),
            }),
        );
    }

    rings() {
        const size = this.size.wide / REPORT.steps;
        const here = (f) => f.matrices.includes(this.weights.name) && isShown(f.sequence);
        return REPORT.findings
            .filter((f) => f.is_fault && f.t !== null && f.s !== null && here(f))
            .map((f) =>
                svg("circle", {
                    cx: this.X(f.s - REPORT.start + 0.5),
                    cy: this.Y(f.t - REPORT.start + 0.5),
                    r: Math.max(6, 0.62 * size),
                    class: "ring",
                    "data-kind": f.kind,
                }),
            );
    }

    cross() {
        const { t, s } = view;
        const cell = Math.max(2, this.size.wide / REPORT.steps);
        const end = REPORT.both_ways ? REPORT.steps : t + 1;
        const row = {
            x: this.size.left,
            y: this.Y(t),
            width: this.X(end) - this.size.left,
            height: cell,
        };
        const found = [svg("rect", { ...row, class: "row" })];
        if (s === null) return found;
        const top = REPORT.both_ways ? 0 : s;
        const column = {
            x: this.X(s),
            y: this.Y(top),
            width: cell,
            height: this.Y(REPORT.steps) - this.Y(top),
        };
        return [...found, svg("rect", { ...column, class: "column" })];
    }

    labels() {
        const { left, wide } = this.size;
        const T = REPORT.steps;
        const label = (n, chosen, x, y, kind) =>
            svg("text", { x, y, class: `label ${kind}${n === chosen ? " chosen" : ""}` }, called(n));
        return [
            ...thinned(T, wide, 20, view.t).map((n) =>
                label(n, view.t, left - 6, this.Y(n + 0.5) + 4, "end"),
            ),
            ...thinned(T, wide, 30, view.s).map((n) =>
                label(n, view.s, this.X(n + 0.5), TOP + wide + 16, "middle"),
            ),
            svg("text", { x: 1, y: TOP - 9 }, this.rows),
            svg("text", { x: left + wide, y: TOP + wide + 34, class: "end" }, this.columns),
        ];
    }

    inWords(said) {
        const here = view.s === null ? [] : findingsAt(this.weights.name, view.t, view.s);
        const named = (f) => el("strong", { class: f.is_fault ? "loss" : null }, f.kind);
        return [said, ...here.flatMap((f) => [" Here: ", named(f), "."])];
    }
}

// Colours: 1 has the same in every report, each half is logarithmic and as wide as it needs.
const ONE = 0.6;
const RANGE = rangeOf([CREDIT, MEMORY]);

function rangeOf(all) {
    let [least, most] = [1, 1];
    const each = (runs) => {
        for (let n = 1; n < runs.length; n += 2) {
            const size = Math.abs(runs[n]);
            if (!size) continue;
            least = Math.min(least, size);
            most = Math.max(most, size);
        }
    };
    for (const { packed } of all) [packed.mean, ...packed.each].forEach((rows) => rows.forEach(each));
    return { least: Math.max(least, 1e-3), most: Math.min(most, 1e4) };
}

function colourOf(w) {
    const { least, most } = RANGE;
    const size = clamp(Math.abs(w), least, most);
    const share = Math.log(size) / (Math.log(size < 1 ? least : most) || 1);
    const x = size < 1 ? ONE - (ONE - 0.15) * share : ONE + (1 - ONE) * share;
    return table(themeNow(), w < 0 ? "raises" : "size")[Math.round(x * (STEPS - 1))];
}

// A few weights and their colours.
function weightLegend() {
    const { least, most } = RANGE;
    const middle = [least, most].filter((w) => w < 0.1 || w > 10).map(Math.sqrt);
    const shown = [...new Set([least, ...middle, 1, most])].sort((a, b) => a - b);
    const swatch = (w) => {
        const box = svg("rect", { width: 14, height: 14, class: "swatch" });
        box.setAttribute("fill", w ? css(colourOf(w)) : "none");
        return el(
            "li",
            {},
            svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, box),
            ` ${number(w)}`,
        );
    };
    return el("ul", { class: "legend", id: "weights" }, ...[0, ...shown].map(swatch));
}
