// The curves by lag: small ones on the cards, and all of them in one plot.

// A small curve of by_lag, without axes; all have the same ranges, so that they can be compared.
function sparkline(raw, { width = 150, height = 40, lags, decades = 6 }) {
    const { lag, mean: means } = raw.by_lag;
    const points = lag.map((k, n) => [k, logOf(means[n])]).filter(([, y]) => Number.isFinite(y));
    const top = points.length ? points[0][1] : 0;
    const X = (k) => 1 + (k / Math.max(1, lags - 1)) * (width - 2);
    const level = height / 3;
    const Y = (y) => clamp(level - ((y - top) / decades) * height, -height, 2 * height);
    const start = svg("line", { x1: 0, x2: width, y1: level, y2: level, class: "grid" });
    const d = points
        .map(([k, y], n) => `${n ? "L" : "M"}${X(k).toFixed(1)} ${Y(y).toFixed(1)}`)
        .join("");
    const curve = svg("path", { d: d || "M0 0", fill: "none", class: "curve" });
    return svg(
        "svg",
        {
            width,
            height,
            viewBox: `0 0 ${width} ${height}`,
            preserveAspectRatio: "none",
            "aria-hidden": "true",
            class: "spark",
        },
        start,
        curve,
    );
}

// Lag by lag: every run's mean, and of the one chosen the band, the bound and the fit.
function drawByLag(host) {
    const low = [];
    const high = [];
    const curves = RUNS.map((r) => lagCurve(r));
    curves.forEach((c) =>
        c.mean.forEach(([, y]) => Number.isFinite(y) && (low.push(y), high.push(y))),
    );
    const top = Math.max(...high, -Infinity);
    if (!Number.isFinite(top)) {
        host.replaceChildren(el("p", { class: "empty" }, "No lag has a mean above zero."));
        return;
    }
    // What lies more than eight decades below the greatest is off the plot, and so are the lags
    // where nothing else is left.
    const bottom = Math.max(Math.min(...low), top - 8);
    const seen = curves.flatMap((c) => c.mean.filter(([, y]) => y >= bottom).map(([k]) => k));
    const last = Math.min(
        Math.ceil(1.1 * Math.max(...seen)) + 2,
        Math.max(...RUNS.map((r) => r.raw.by_lag.lag.at(-1)), 1),
    );
    const named = nameInPlace(host);
    const chart = new Chart(host, {
        height: clamp(host.clientWidth * 0.5, 230, 380),
        x: { from: 0, to: last },
        y: { from: bottom - 0.15, to: top + 0.35 },
        left: 52,
        right: named ? 84 : 14,
        label: "Size of the gradient by lag, on a logarithmic scale",
    });
    chart.yAxis(decadeTicks(bottom - 0.15, top + 0.35), decade);
    chart.xAxis(wholeTicks(0, last, host.clientWidth > 560 ? 10 : 6), "lag t − s, in steps");
    RUNS.forEach((r, n) => n !== view.run && drawCurve(chart, r, curves[n], false));
    drawCurve(chart, run(), curves[view.run], true);
    drawMarks(chart, run());
    if (named) nameCurves(chart, curves);
    else if (RUNS.length > 1) host.append(runLegend());
}

// A few short names find room where their curves end.
function nameInPlace(host) {
    return (
        RUNS.length > 1 &&
        RUNS.length < 7 &&
        host.clientWidth > 560 &&
        RUNS.every((r) => r.name.length < 11)
    );
}

function runLegend() {
    const entries = RUNS.map((r) => {
        const style = {
            x1: 0,
            x2: 26,
            y1: 5,
            y2: 5,
            stroke: runColour(r.index),
            "stroke-width": 2.2,
            "stroke-dasharray": runDash(r.index),
        };
        return el(
            "li",
            {},
            svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", style)),
            " ",
            r.name,
        );
    });
    return el("ul", { class: "legend names" }, ...entries);
}

function lagCurve(r) {
    const { lag, mean: means, low, high } = r.raw.by_lag;
    const first = means.findIndex((m) => m > 0);
    const base = view.relative && first >= 0 ? Math.log10(means[first]) : 0;
    const points = (values) => lag.map((k, n) => [k, logOf(values[n]) - base]);
    const curve = { mean: points(means), low: points(low), high: points(high), bound: [], fit: [] };
    const bound = boundOf(r);
    if (bound && first >= 0) {
        const start = curve.mean[first];
        curve.bound = lag
            .slice(first)
            .map((k) => [k, start[1] + (k - start[0]) * Math.log10(bound)]);
    }
    const { decay } = r.raw;
    if (decay && decay.beta > 0) {
        const inside = curve.mean.filter(
            ([k, y]) => k >= decay.first && k <= decay.last && Number.isFinite(y),
        );
        const slope = Math.log10(decay.beta);
        const level = mean(inside.map(([k, y]) => y - k * slope));
        if (inside.length) curve.fit = [decay.first, decay.last].map((k) => [k, level + k * slope]);
    }
    return curve;
}

// β_W·β_h bounds the whole only where there is one layer.
function boundOf(r) {
    const layers = r.raw.dynamics;
    return layers && layers.length === 1 ? layers[0].bound : null;
}

function drawCurve(chart, r, curve, chosen) {
    const stroke = runColour(r.index);
    if (chosen) {
        chart.band(curve.low, curve.high, { fill: stroke, class: "band" });
        chart.line(curve.bound, { class: "bound" });
        chart.line(curve.fit, { class: "fit" });
    }
    chart.line(curve.mean, {
        stroke,
        class: chosen ? "curve chosen" : "curve",
        "stroke-dasharray": runDash(r.index),
        "data-run": r.index,
    });
}

function drawMarks(chart, r) {
    const { horizon, suggested_reach: suggested } = r.raw;
    if (horizon && horizon.lag !== null) {
        const reached = horizon.reached ? "" : " or more";
        chart.mark(Math.min(horizon.lag, chart.x.to), `horizon ${horizon.lag}${reached}`, {
            "data-mark": "horizon",
        });
    }
    if (suggested && suggested.reach) {
        const at = Math.min(suggested.reach, chart.x.to);
        chart.mark(at, "", { class: "mark faint", "data-mark": "suggested" });
    }
}

// Names where the curves end, moved apart.
function nameCurves(chart, curves) {
    const ends = curves.map((c, n) => {
        const [k, y] = c.mean.findLast(([, v]) => Number.isFinite(v) && v >= chart.y.from) || [
            0,
            chart.y.from,
        ];
        return { n, x: chart.X(k), y: chart.Y(y) };
    });
    const aside = ends
        .filter((e) => e.x > chart.width - chart.right - 40)
        .sort((a, b) => a.y - b.y);
    const down = ends.filter((e) => !aside.includes(e)).sort((a, b) => a.x - b.x);
    aside.forEach((e, n) => (e.y = Math.max(e.y, n ? aside[n - 1].y + 14 : 0)));
    down.forEach((e, n) => (e.x = Math.max(e.x, n ? down[n - 1].x + 50 : 0)));
    for (const e of ends) {
        const beside = aside.includes(e);
        const place = {
            x: beside ? chart.width - chart.right + 8 : e.x + 4,
            y: beside ? e.y + 4 : e.y - 6,
        };
        const style = {
            ...place,
            class: e.n === view.run ? "name chosen" : "name",
            fill: runColour(e.n),
        };
        chart.over.append(svg("text", style, RUNS[e.n].name));
    }
}
