// The picture of one network: the stream, the matrix of the gradient with what the credit cuts, and
// what is remembered, all over the same steps.

const DECADES = 4; // from full colour to none
const BARS = 64;

function drawMatrix(host, { tokens, targets, look, reach, label }) {
    const { T, norms, told } = look;
    const left = 34;
    const width = Math.max(260, host.clientWidth);
    const size = Math.min(30, Math.floor((width - left - 4) / T));
    const top = 22;
    const bars = top + T * size + 34;
    const height = bars + BARS + 20;
    const node = svg("svg", {
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": label,
    });
    const x = (i) => left + i * size;
    const y = (t) => top + t * size;
    for (let t = 0; t < T; t += 1) {
        node.append(...heads(tokens, targets, t, x, y, size, T));
        const most = greatest(norms.subarray(t * T, t * T + t + 1));
        for (let i = 0; i <= t; i += 1) {
            const place = { x: x(i), y: y(t), width: size - 1, height: size - 1 };
            const said = `Loss of step ${t}, state after step ${i}: ${number(norms[t * T + i])}`;
            node.append(
                svg(
                    "rect",
                    { ...place, fill: shade(norms[t * T + i], most) },
                    svg("title", {}, said),
                ),
            );
            if (i <= t - reach)
                node.append(
                    svg("rect", { ...place, class: "veil" }),
                    svg(
                        "rect",
                        { ...place, class: "cut", fill: "url(#hatch)" },
                        svg("title", {}, `${said}, cut`),
                    ),
                );
        }
    }
    const ring = { x: x(0), y: y(T - 1), width: size - 1, height: size - 1, class: "need" };
    node.append(svg("rect", ring), ...toldBars(told, x, bars, size));
    host.replaceChildren(node);
}

// The colour of a norm, relative to the greatest of its row.
function shade(norm, most) {
    const strength = norm > 0 ? clamp(1 + Math.log10(norm / most) / DECADES, 0, 1) : 0;
    return css(table(themeNow(), "size")[Math.round(strength * (STEPS - 1))]);
}

// The hatching that all pictures of the page use.
function sharedHatch() {
    const lines = svg("path", { d: "M-1 1L1 -1M0 6L6 0M5 7L7 5", class: "cutting" });
    const size = { width: 6, height: 6, patternUnits: "userSpaceOnUse" };
    const pattern = svg("pattern", { id: "hatch", ...size }, lines);
    return svg("svg", { width: 0, height: 0, "aria-hidden": "true" }, svg("defs", {}, pattern));
}

// The token of a step over its column, and the answer that is wanted beside its row.
function heads(tokens, targets, t, x, y, size, T) {
    const key = t === 0 || t === T - 1 ? " key-token" : "";
    const column = { x: x(t) + size / 2 - 0.5, y: 15, class: `token middle${key}` };
    const row = { x: 26, y: y(t) + size / 2 + 4, class: `token end${key}` };
    return [svg("text", column, tokens[t]), svg("text", row, targets[t])];
}

function toldBars(told, x, top, size) {
    const base = top + BARS;
    const level = (share) => base - share * BARS;
    const end = x(told.length);
    const found = [
        svg("text", { x: x(0), y: top - 8, class: "small" }, "Share of letters the state tells"),
        svg("line", { x1: x(0), x2: end, y1: base + 0.5, y2: base + 0.5, class: "base" }),
    ];
    told.forEach((share, i) => {
        const high = Math.max(1, share * BARS);
        const place = { x: x(i), y: base - high, width: size - 2, height: high };
        found.push(svg("rect", { ...place, class: "told" }));
    });
    for (const share of [1, CHANCE]) {
        const y = level(share);
        found.push(
            svg("line", { x1: x(0), x2: end, y1: y, y2: y, class: "chance" }),
            svg("text", { x: x(0) - 3, y: y + 4, class: "small end" }, String(100 * share)),
        );
    }
    found.push(svg("text", { x: x(0) - 3, y: base + 4, class: "small end" }, "0"));
    found.push(
        svg(
            "text",
            { x: x(0), y: base + 15, class: "small" },
            "% right, step by step; dashed: guessing",
        ),
    );
    return found;
}
