// Line charts in SVG: axes, lines, bands; sizes are given, data says what is drawn.

class Chart {
    // x and y: { from, to, log } in units of the data, y in log10 where it is logarithmic.
    constructor(host, { height, x, y, left = 46, right = 14, top = 10, bottom = 34, label }) {
        const width = Math.max(240, host.clientWidth);
        Object.assign(this, { width, height, x, y, left, right, top, bottom });
        this.plot = svg("g", {});
        const id = `clip${(Chart.count = (Chart.count || 0) + 1)}`;
        const inside = {
            x: left,
            y: top,
            width: width - left - right,
            height: height - top - bottom,
        };
        this.node = svg(
            "svg",
            { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
            svg("clipPath", { id }, svg("rect", inside)),
            (this.axes = svg("g", { class: "axes" })),
            svg("g", { "clip-path": `url(#${id})` }, this.plot),
            (this.over = svg("g", {})),
        );
        host.replaceChildren(this.node);
    }

    X(value) {
        const { from, to, log } = this.x;
        const share = log
            ? Math.log(value / from) / Math.log(to / from)
            : (value - from) / (to - from || 1);
        return this.left + share * (this.width - this.left - this.right);
    }

    Y(value) {
        const share = (value - this.y.from) / (this.y.to - this.y.from || 1);
        return this.height - this.bottom - share * (this.height - this.top - this.bottom);
    }

    // The value under a place on the screen.
    atX(clientX) {
        const box = this.node.getBoundingClientRect();
        const width = this.width - this.left - this.right;
        const share = clamp((clientX - box.left - this.left) / width, 0, 1);
        const { from, to, log } = this.x;
        return log ? from * (to / from) ** share : from + share * (to - from);
    }

    xAxis(ticks, title, write = String) {
        const y = this.height - this.bottom;
        this.axes.append(
            svg("line", {
                x1: this.left,
                x2: this.width - this.right,
                y1: y,
                y2: y,
                class: "base",
            }),
        );
        for (const tick of ticks) {
            const text = svg(
                "text",
                { x: this.X(tick), y: y + 15, class: "tick middle" },
                write(tick),
            );
            this.axes.append(
                svg("line", {
                    x1: this.X(tick),
                    x2: this.X(tick),
                    y1: y,
                    y2: y + 4,
                    class: "base",
                }),
                text,
            );
        }
        if (title)
            this.axes.append(
                svg(
                    "text",
                    { x: this.width - this.right, y: this.height - 3, class: "title end" },
                    title,
                ),
            );
    }

    yAxis(ticks, write) {
        for (const tick of ticks) {
            const y = this.Y(tick);
            this.axes.append(
                svg("line", {
                    x1: this.left,
                    x2: this.width - this.right,
                    y1: y,
                    y2: y,
                    class: "grid",
                }),
                svg("text", { x: this.left - 7, y: y + 4, class: "tick end" }, write(tick)),
            );
        }
    }

    // Points [x, y]; a point that is not a finite number breaks the line.
    line(points, attributes) {
        let path = "";
        let pen = "M";
        for (const [x, y] of points) {
            if (Number.isFinite(y))
                path += `${pen}${this.X(x).toFixed(1)} ${clamp(this.Y(y), -9999, 9999).toFixed(1)}`;
            pen = Number.isFinite(y) ? "L" : "M";
        }
        this.plot.append(svg("path", { d: path || "M0 0", fill: "none", ...attributes }));
    }

    band(low, high, attributes) {
        const inside = (y) =>
            clamp(Number.isFinite(y) ? this.Y(y) : this.height, -9999, 9999).toFixed(1);
        const points = [...high, ...[...low].reverse()].map(
            ([x, y]) => `${this.X(x).toFixed(1)} ${inside(y)}`,
        );
        if (points.length)
            this.plot.append(svg("path", { d: `M${points.join("L")}Z`, ...attributes }));
    }

    // A vertical mark, its word at the top.
    mark(x, text, attributes = {}) {
        const at = this.X(x);
        const end = at > this.width - this.right - 90;
        this.over.append(
            svg("line", {
                x1: at,
                x2: at,
                y1: this.top,
                y2: this.height - this.bottom,
                class: "mark",
                ...attributes,
            }),
        );
        if (!text) return;
        const words = {
            x: at + (end ? -5 : 5),
            y: this.top + 11,
            class: end ? "note end" : "note",
        };
        this.over.append(svg("text", words, text));
    }
}

// Whole numbers that read well, some six of them.
function wholeTicks(from, to, most = 7) {
    const step =
        [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].find((s) => (to - from) / s <= most) || 1000;
    const ticks = [];
    for (let x = Math.ceil(from / step) * step; x <= to; x += step) ticks.push(x);
    return ticks;
}

function decadeTicks(from, to, most = 6) {
    const step = [1, 2, 3, 5, 10, 20, 50].find((s) => (to - from) / s <= most) || 100;
    const ticks = [];
    for (let y = Math.ceil(from / step - 1e-9) * step; y <= to + 1e-9; y += step) ticks.push(y);
    return ticks;
}

function decade(exponent) {
    return { "-2": "0.01", "-1": "0.1", 0: "1", 1: "10", 2: "100" }[exponent] || power(exponent);
}

const logOf = (v) => (v === null || v === undefined || !(v > 0) ? NONE : Math.log10(v));
