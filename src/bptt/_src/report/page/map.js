// The matrix as a heat map: a row is a loss, a column a step that it reaches. The cells are on a
// canvas; what a credit leaves out, axes and crosshair are in SVG above it.

const MAPS = new Map(); // run -> its map

class HeatMap {
    constructor(r) {
        this.run = r;
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
        this.legend = el("div", { class: "scale" });
        this.head = el("h3", {}, el("span", { class: "dot", "data-run": r.index }), r.name);
        this.corner = el("div", { class: "corner" }, this.legend, this.readout);
        this.node = el(
            "section",
            { class: "map", "aria-label": `Matrix of ${r.name}` },
            this.head,
            this.frame,
            this.corner,
        );
        this.listen();
    }

    listen() {
        const { frame } = this;
        frame.addEventListener("pointermove", (e) => {
            if (!view.held && e.pointerType !== "touch") this.point(e, false);
        });
        frame.addEventListener("click", (e) => this.point(e, true));
        frame.addEventListener("pointerleave", () => !view.held && set({ s: null }));
        frame.addEventListener("keydown", (e) => this.onKey(e));
    }

    point(event, hold) {
        const place = this.placeOf(event);
        if (!place) return;
        const held = hold ? !(view.held && place.t === view.t && place.s === view.s) : view.held;
        set({ ...place, held });
    }

    placeOf(event) {
        const box = this.canvas.getBoundingClientRect();
        const { left, top, wide, high } = this.size;
        const x = (event.clientX - box.left - left) / wide;
        const y = (event.clientY - box.top - top) / high;
        if (x < 0 || x >= 1 || y < 0 || y >= 1) return null;
        const r = this.run;
        const t = r.rowTimes(Math.floor(y * r.rows)).at(-1);
        const s = Math.floor(x * r.columns) * r.block;
        return { t, s: s <= t ? s : null };
    }

    onKey(event) {
        const r = this.run;
        const row = r.rowAt(view.t);
        const s = view.s ?? r.timeAt(view.t);
        const aside = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (aside) set({ s: clamp((r.columnAt(s) + aside) * r.block, 0, r.timeAt(view.t)) });
        else if (down) this.toRow(clamp(row + down, 0, r.rows - 1));
        else if (event.key === "Home") set({ s: 0 });
        else if (event.key === "End") set({ s: r.timeAt(view.t) });
        else if (event.key === "Escape") set({ s: null, held: false });
        else if (event.key === "Enter" || event.key === " ") set({ held: !view.held });
        else return;
        event.preventDefault();
    }

    toRow(row) {
        const t = this.run.rowTimes(row).at(-1);
        set({ t, s: view.s === null ? null : Math.min(view.s, t) });
    }

    measureSize() {
        const r = this.run;
        const width = this.node.clientWidth;
        const narrow = width < 420;
        const left = r.isText ? (narrow ? 84 : 96) : 48;
        const wide = Math.max(160, Math.min(width - left - 8, 640));
        const square = wide * (r.rows / r.columns);
        const high =
            r.rows === r.columns
                ? wide
                : clamp(r.rows * 22, 66, Math.max(square, Math.min(wide, r.rows * 22)));
        const bottom = r.isText ? (narrow ? 66 : 88) : 40;
        this.size = {
            left,
            top: 22,
            wide,
            high,
            bottom,
            width: left + wide + 8,
            height: 22 + high + bottom,
        };
    }

    draw() {
        this.head.hidden = !view.all;
        this.measureSize();
        const { width, height } = this.size;
        const dense = window.devicePixelRatio || 1;
        Object.assign(this.canvas, {
            width: Math.round(width * dense),
            height: Math.round(height * dense),
        });
        this.canvas.style.width = this.over.style.width = this.frame.style.width = `${width}px`;
        this.canvas.style.height = this.over.style.height = `${height}px`;
        this.over.setAttribute("viewBox", `0 0 ${width} ${height}`);
        this.placeCorner();
        const context = this.canvas.getContext("2d");
        context.scale(dense, dense);
        this.drawCells(context);
        this.drawOver();
    }

    // Legend and readout lie where s > t and there is nothing else, if there is room.
    placeCorner() {
        const { left, top, wide, high } = this.size;
        const free = wide === high && wide > 380;
        this.corner.classList.toggle("free", free);
        Object.assign(this.corner.style, {
            left: free ? `${left + 0.44 * wide}px` : "",
            top: free ? `${top + (this.head.hidden ? 0 : this.frame.offsetTop)}px` : "",
            width: free ? `${0.56 * wide}px` : "",
        });
    }

    drawCells(context) {
        const r = this.run;
        const measure = r.measure(view.measure);
        const image = new ImageData(r.columns, r.rows);
        for (let row = 0; row < r.rows; row += 1) {
            for (let column = 0; column < r.columns; column += 1) {
                const rgb = colour(measure, row, column, view);
                if (rgb) image.data.set([...rgb, 255], 4 * (row * r.columns + column));
            }
        }
        const cells = el("canvas", { width: r.columns, height: r.rows });
        cells.getContext("2d").putImageData(image, 0, 0);
        const { left, top, wide, high } = this.size;
        context.imageSmoothingEnabled = false;
        this.drawUnknown(context);
        context.drawImage(cells, left, top, wide, high);
    }

    // Where s ≤ t but nothing was followed: dots, so that it does not look like a zero.
    drawUnknown(context) {
        const r = this.run;
        const { left, top, wide, high } = this.size;
        const dot = getComputedStyle(document.documentElement).getPropertyValue("--line");
        context.save();
        context.beginPath();
        for (let row = 0; row < r.rows; row += 1) {
            const end = Math.min(r.columns, r.columnAt(r.rowTimes(row).at(-1)) + 1);
            context.rect(
                left,
                top + (row / r.rows) * high,
                (end / r.columns) * wide,
                high / r.rows,
            );
        }
        context.clip();
        context.fillStyle = dot;
        for (let y = top + 3; y < top + high; y += 6) {
            for (let x = left + 3; x < left + wide; x += 6) context.fillRect(x, y, 1, 1);
        }
        context.restore();
    }

    X(step) {
        return this.size.left + (step / (this.run.columns * this.run.block)) * this.size.wide;
    }

    Y(row) {
        return this.size.top + (row / this.run.rows) * this.size.high;
    }

    drawOver() {
        const r = this.run;
        const row = r.rowAt(view.t);
        const seen = [...this.labels(row), ...this.leftOut(), ...this.cross(row)];
        this.over.replaceChildren(...seen);
        const t = r.timeAt(view.t);
        const measure = r.measure(view.measure);
        this.frame.setAttribute(
            "aria-label",
            `Matrix of ${r.name}, ${measure.label}: row ${t}, column ${view.s ?? "none"}`,
        );
        const said =
            view.s !== null && view.s <= t
                ? valueAt(r, measure, row, view.s)
                : ["Point at the matrix, or move with the arrow keys."];
        this.readout.replaceChildren(el("span", { class: "loss" }, `Loss at step ${t}. `), ...said);
        drawScale(this.legend, measure, row);
    }

    // What the credit leaves out: hatched, and its edge drawn.
    leftOut() {
        const r = this.run;
        if (view.credit === "full") return [];
        const { left, top, high } = this.size;
        const every = EVERY[view.credit](view.reach);
        let hatch = `M${left} ${top}`;
        let edge = "";
        for (let row = 0; row < r.rows; row += 1) {
            const x = this.X(mean(r.rowTimes(row).map((t) => since(t, every, view.reach)))).toFixed(
                1,
            );
            hatch += `H${x}V${this.Y(row + 1).toFixed(1)}`;
            edge += `${row ? "H" : "M"}${x}${row ? "" : ` ${top}`}V${this.Y(row + 1).toFixed(1)}`;
        }
        hatch += `H${left}V${top + high}H${left}Z`;
        const id = `hatch${r.index}`;
        const stripes = {
            id,
            width: 6,
            height: 6,
            patternUnits: "userSpaceOnUse",
            patternTransform: "rotate(45)",
        };
        return [
            svg("pattern", stripes, svg("line", { x1: 0, x2: 0, y1: 0, y2: 6, class: "stripe" })),
            svg("path", { d: hatch, class: "veil" }),
            svg("path", { d: hatch, fill: `url(#${id})` }),
            svg("path", { d: edge, class: "edge" }),
        ];
    }

    cross(row) {
        const r = this.run;
        const end = this.X(Math.min(r.timeAt(view.t) + 1, r.columns * r.block));
        const box = {
            x: this.size.left,
            y: this.Y(row),
            width: end - this.size.left,
            height: Math.max(2, this.size.high / r.rows),
        };
        const found = [svg("rect", { ...box, class: "row" })];
        if (view.s === null || view.s > view.t) return found;
        const column = r.columnAt(view.s);
        const width = Math.max(2, this.size.wide / r.columns);
        const x = this.X(column * r.block);
        // The state of step s matters to the losses from there on: it begins at the diagonal.
        const first = r.rowAt(Math.max(view.s, r.times[0]));
        const y = this.Y(first);
        found.push(
            svg("rect", {
                x,
                y,
                width,
                height: this.size.top + this.size.high - y,
                class: "column",
            }),
        );
        return found;
    }

    labels(row) {
        const r = this.run;
        const { left, top, high, bottom } = this.size;
        const found = [];
        const column = view.s === null ? null : r.columnAt(view.s);
        for (const n of thinned(r.rows, high, 13, row)) {
            const y = this.Y(n + 0.5);
            const attributes = {
                x: left - 7,
                y: y + 4,
                class: n === row ? "label loss end" : "label end",
            };
            found.push(svg("text", attributes, this.rowLabel(n)));
        }
        for (const n of thinned(r.columns, this.size.wide, 13, column)) {
            const x = this.X((n + 0.5) * r.block);
            const turned = r.isText
                ? `translate(${x + 4} ${top + high + 8}) rotate(-90)`
                : `translate(${x} ${top + high + 16})`;
            const kind = `label ${r.isText ? "end" : "middle"}${n === column ? " chosen" : ""}`;
            if (!r.isText && n !== column && n % this.every()) continue;
            found.push(svg("text", { transform: turned, class: kind }, this.columnLabel(n)));
        }
        found.push(svg("text", { x: 1, y: top - 9, class: "title" }, this.rowTitle()));
        found.push(
            svg(
                "text",
                { x: left + this.size.wide, y: top + high + bottom - 6, class: "title end" },
                r.isText ? "read at step s" : "step s",
            ),
        );
        return found;
    }

    rowTitle() {
        if (!this.run.isText) return "step t";
        return this.run.raw.targets ? "predicted at t" : "read at t";
    }

    every() {
        return Math.max(1, Math.ceil(36 / (this.size.wide / this.run.columns)));
    }

    rowLabel(n) {
        const r = this.run;
        const t = r.rowTimes(n).at(-1);
        return r.isText
            ? cut(shown(r.target(t) ?? r.token(t)), this.size.left > 80 ? 12 : 8)
            : String(t);
    }

    columnLabel(n) {
        const r = this.run;
        return r.isText ? cut(shown(r.token(n * r.block)), 11) : String(n * r.block);
    }
}

// The colours and what they stand for.
function drawScale(host, measure, row) {
    const top = view.scale === "loss" ? measure.tops[row] : measure.top;
    const kinds = measure.signed ? ["lowers", "raises"] : ["size"];
    const bars = kinds.map((kind) => {
        const bar = el("canvas", { width: STEPS, height: 1, class: "bar", "aria-hidden": "true" });
        const image = new ImageData(STEPS, 1);
        table(themeNow(), kind).forEach((rgb, x) => image.data.set([...rgb, 255], 4 * x));
        bar.getContext("2d").putImageData(image, 0, 0);
        return el("div", {}, measure.signed ? el("span", {}, `${kind} the loss`) : null, bar);
    });
    const ends = Number.isFinite(top)
        ? [`≤ ${number(10 ** (top - view.decades))}`, number(10 ** top)]
        : ["–", "–"];
    const what = view.scale === "loss" ? "of this row" : "of the matrix";
    host.replaceChildren(
        el(
            "p",
            { class: "what" },
            measure.signed ? "input · gradient" : `gradient, ${measure.label}`,
        ),
        ...bars,
        el(
            "p",
            { class: "ends" },
            el("span", {}, ends[0]),
            el("span", {}, `largest ${what}`),
            el("span", {}, ends[1]),
        ),
    );
}

function drawMaps(changed) {
    const maps = document.getElementById("maps");
    const wanted = shownRuns();
    const whole = ["everything", "run", "all", "measure", "scale", "decades"].some((key) =>
        changed.has(key),
    );
    if (!whole) {
        wanted.forEach((r) => MAPS.get(r).drawOver());
        return;
    }
    maps.classList.toggle("several", wanted.length > 1);
    for (const r of wanted) if (!MAPS.has(r)) MAPS.set(r, new HeatMap(r));
    maps.replaceChildren(...wanted.map((r) => MAPS.get(r).node));
    wanted.forEach((r) => MAPS.get(r).draw());
}
