// The layers' dynamics: a table, the gates, and the Jacobians' norms along the steps.

const COLUMNS = [
    ["Layer", (d) => String(d.layer + 1)],
    ["‖J‖, mean", (d) => number(known(d.jacobian_norms, mean))],
    ["largest", (d) => number(known(d.jacobian_norms, (v) => Math.max(...v)))],
    ["bound β_W·β_h", (d) => number(d.bound)],
    ["‖W‖", (d) => number(d.largest_singular_value ?? d.weight_norm)],
    ["sup φ′", (d) => number(d.slope)],
    ["ρ(W)", (d) => number(d.spectral_radius)],
    ["saturated", (d) => share(d.saturated)],
    ["dead", (d) => share(d.dead)],
    ["Lyapunov exponents", exponents],
];

function exponents(d) {
    const errors = d.lyapunov_errors || [];
    const each = (d.lyapunov || [])
        .slice(0, errors.length ? 2 : 4)
        .map((x, n) => (errors[n] ? `${number(x)} ± ${error(errors[n])}` : number(x)));
    return each.join(", ") || "–";
}

// Of each gate: how often it is as good as shut, and as good as open.
function gates(layers) {
    const known = layers.filter((d) => d.gates);
    if (!known.length) return null;
    const rows = known.flatMap((d) =>
        Object.entries(d.gates).map(([name, ends]) => [d.layer + 1, name, ...ends.map(share)]),
    );
    const head = el(
        "tr",
        {},
        ...["Layer", "Gate", "shut, below 0.05", "open, above 0.95"].map((name) =>
            el("th", { scope: "col" }, name),
        ),
    );
    const body = rows.map((cells) =>
        el(
            "tr",
            {},
            ...cells.map((cell, n) =>
                el(n < 2 ? "th" : "td", n < 2 ? { scope: "row" } : {}, String(cell)),
            ),
        ),
    );
    return el("table", { id: "gates" }, el("thead", {}, head), el("tbody", {}, ...body));
}

const share = (x) => (x === null || x === undefined ? "–" : percent(x));

function known(values, of) {
    const there = (values || []).filter((v) => v !== null);
    return there.length ? of(there) : null;
}

function dynamics(r) {
    const layers = r.raw.dynamics;
    if (!layers || !layers.length)
        return [el("p", { class: "empty" }, "Not measured for this module.")];
    const head = el(
        "tr",
        {},
        ...COLUMNS.map(([name]) => el("th", { scope: "col" }, ...rich(name))),
    );
    const rows = layers.map((d) =>
        el(
            "tr",
            {},
            ...COLUMNS.map(([, of], n) =>
                n ? el("td", {}, of(d)) : el("th", { scope: "row" }, of(d)),
            ),
        ),
    );
    const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
    const found = [
        el(
            "div",
            {
                class: "wide",
                tabindex: 0,
                role: "region",
                "aria-label": "Dynamics, layer by layer",
            },
            table,
            gates(layers),
        ),
    ];
    if (layers.some((d) => known(d.jacobian_norms, (v) => v.length) > 1))
        found.push(
            el("p", { class: "caption" }, ...rich("‖J‖ = ‖∂h_t/∂h_{t−1}‖, step by step")),
            el("div", { id: "jacobians" }),
        );
    return found;
}

// ‖J_t‖ along the steps, beside 1 and the bound.
function drawJacobians() {
    const host = document.getElementById("jacobians");
    if (!host) return;
    const layers = run().raw.dynamics;
    const logs = layers.flatMap((d) => (d.jacobian_norms || []).map(logOf)).filter(Number.isFinite);
    if (!logs.length) return;
    const bounds = layers.map((d) => logOf(d.bound)).filter(Number.isFinite);
    const ends = [...logs, ...bounds, 0];
    const from = Math.max(Math.min(...ends), -6) - 0.1;
    const to = Math.max(...ends) + 0.1;
    const chart = new Chart(host, {
        height: 150,
        x: { from: 0, to: Math.max(1, run().steps - 1) },
        y: { from, to },
        left: 52,
        label: "Norm of the Jacobian, step by step",
    });
    chart.yAxis(levels(from, to), (y) => number(10 ** y));
    chart.xAxis(wholeTicks(0, run().steps - 1, chart.width > 560 ? 12 : 6), "step t");
    layers.forEach((d, n) => {
        const stroke = runColour(n);
        chart.line(
            (d.jacobian_norms || []).map((v, t) => [t, logOf(v)]),
            { class: "curve chosen", stroke, "stroke-dasharray": DASHES[n % 6] },
        );
        if (d.bound > 0)
            chart.line(
                [
                    [0, logOf(d.bound)],
                    [run().steps, logOf(d.bound)],
                ],
                { class: "bound" },
            );
    });
}

// Ticks that read well where a scale spans less than some decades.
function levels(from, to) {
    if (to - from > 2) return decadeTicks(from, to, 4);
    const all = [];
    for (let e = Math.floor(from); e <= to; e += 1)
        for (const m of [1, 2, 5]) all.push(e + Math.log10(m));
    const inside = all.filter((y) => y >= from && y <= to);
    if (inside.length > 1) return inside;
    return [0.1, 0.5, 0.9].map((share) =>
        Math.log10(Number((10 ** (from + share * (to - from))).toPrecision(2))),
    );
}
