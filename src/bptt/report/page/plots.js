// Line charts in SVG: axes, lines, bands; sizes are given, data says what is drawn.

class Chart {
  // x and y: { from, to, log } in units of the data, y in log10 where it is logarithmic.
  constructor(host, { height, x, y, left = 46, right = 14, top = 10, bottom = 34, label }) {
    const width = Math.max(240, host.clientWidth);
    Object.assign(this, { width, height, x, y, left, right, top, bottom });
    this.plot = svg("g", {});
    const id = `clip${(Chart.count = (Chart.count || 0) + 1)}`;
    const inside = { x: left, y: top, width: width - left - right, height: height - top - bottom };
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
    const share = log ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from || 1);
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
    this.axes.append(svg("line", { x1: this.left, x2: this.width - this.right, y1: y, y2: y, class: "base" }));
    for (const tick of ticks) {
      const text = svg("text", { x: this.X(tick), y: y + 15, class: "tick middle" }, write(tick));
      this.axes.append(svg("line", { x1: this.X(tick), x2: this.X(tick), y1: y, y2: y + 4, class: "base" }), text);
    }
    if (title) this.axes.append(svg("text", { x: this.width - this.right, y: this.height - 3, class: "title end" }, title));
  }

  yAxis(ticks, write) {
    for (const tick of ticks) {
      const y = this.Y(tick);
      this.axes.append(
        svg("line", { x1: this.left, x2: this.width - this.right, y1: y, y2: y, class: "grid" }),
        svg("text", { x: this.left - 7, y: y + 4, class: "tick end" }, write(tick)),
      );
    }
  }

  // Points [x, y]; a point that is not a finite number breaks the line.
  line(points, attributes) {
    let path = "";
    let pen = "M";
    for (const [x, y] of points) {
      if (Number.isFinite(y)) path += `${pen}${this.X(x).toFixed(1)} ${clamp(this.Y(y), -9999, 9999).toFixed(1)}`;
      pen = Number.isFinite(y) ? "L" : "M";
    }
    this.plot.append(svg("path", { d: path || "M0 0", fill: "none", ...attributes }));
  }

  band(low, high, attributes) {
    const inside = (y) => clamp(Number.isFinite(y) ? this.Y(y) : this.height, -9999, 9999).toFixed(1);
    const points = [...high, ...[...low].reverse()].map(([x, y]) => `${this.X(x).toFixed(1)} ${inside(y)}`);
    if (points.length) this.plot.append(svg("path", { d: `M${points.join("L")}Z`, ...attributes }));
  }

  // A vertical mark, its word at the top.
  mark(x, text, attributes = {}) {
    const at = this.X(x);
    const end = at > this.width - this.right - 90;
    this.over.append(
      svg("line", { x1: at, x2: at, y1: this.top, y2: this.height - this.bottom, class: "mark", ...attributes }),
    );
    if (!text) return;
    const words = { x: at + (end ? -5 : 5), y: this.top + 11, class: end ? "note end" : "note" };
    this.over.append(svg("text", words, text));
  }
}

// Whole numbers that read well, some six of them.
function wholeTicks(from, to, most = 7) {
  const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].find((s) => (to - from) / s <= most) || 1000;
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

// A small curve of by_lag, without axes; all have the same ranges, so that they can be compared.
function sparkline(raw, { width = 150, height = 40, lags, decades = 6 }) {
  const { lag, mean: means } = raw.by_lag;
  const points = lag.map((k, n) => [k, logOf(means[n])]).filter(([, y]) => Number.isFinite(y));
  const top = points.length ? points[0][1] : 0;
  const X = (k) => 1 + (k / Math.max(1, lags - 1)) * (width - 2);
  const level = height / 3;
  const Y = (y) => clamp(level - ((y - top) / decades) * height, -height, 2 * height);
  const start = svg("line", { x1: 0, x2: width, y1: level, y2: level, class: "grid" });
  const d = points.map(([k, y], n) => `${n ? "L" : "M"}${X(k).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  const curve = svg("path", { d: d || "M0 0", fill: "none", class: "curve" });
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "spark" }, start, curve);
}

// Lag by lag: every run's mean, and of the one chosen the band, the bound and the fit.
function drawByLag(host) {
  const low = [];
  const high = [];
  const curves = RUNS.map((r) => lagCurve(r));
  curves.forEach((c) => c.mean.forEach(([, y]) => Number.isFinite(y) && (low.push(y), high.push(y))));
  const top = Math.max(...high, -Infinity);
  if (!Number.isFinite(top)) {
    host.replaceChildren(el("p", { class: "empty" }, "No lag has a mean above zero."));
    return;
  }
  // What lies more than eight decades below the greatest is off the plot, and so are the lags
  // where nothing else is left.
  const bottom = Math.max(Math.min(...low), top - 8);
  const seen = curves.flatMap((c) => c.mean.filter(([, y]) => y >= bottom).map(([k]) => k));
  const last = Math.min(Math.ceil(1.1 * Math.max(...seen)) + 2, Math.max(...RUNS.map((r) => r.raw.by_lag.lag.at(-1)), 1));
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
  return RUNS.length > 1 && RUNS.length < 7 && host.clientWidth > 560 && RUNS.every((r) => r.name.length < 11);
}

function runLegend() {
  const entries = RUNS.map((r) => {
    const style = { x1: 0, x2: 26, y1: 5, y2: 5, stroke: runColour(r.index), "stroke-width": 2.2, "stroke-dasharray": runDash(r.index) };
    return el("li", {}, svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, svg("line", style)), " ", r.name);
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
    curve.bound = lag.slice(first).map((k) => [k, start[1] + (k - start[0]) * Math.log10(bound)]);
  }
  const { decay } = r.raw;
  if (decay && decay.beta > 0) {
    const inside = curve.mean.filter(([k, y]) => k >= decay.first && k <= decay.last && Number.isFinite(y));
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
    chart.mark(Math.min(horizon.lag, chart.x.to), `horizon ${horizon.lag}${reached}`, { "data-mark": "horizon" });
  }
  if (suggested && suggested.reach) {
    const at = Math.min(suggested.reach, chart.x.to);
    chart.mark(at, "", { class: "mark faint", "data-mark": "suggested" });
  }
}

// Names where the curves end, moved apart.
function nameCurves(chart, curves) {
  const ends = curves.map((c, n) => {
    const [k, y] = c.mean.findLast(([, v]) => Number.isFinite(v) && v >= chart.y.from) || [0, chart.y.from];
    return { n, x: chart.X(k), y: chart.Y(y) };
  });
  const aside = ends.filter((e) => e.x > chart.width - chart.right - 40).sort((a, b) => a.y - b.y);
  const down = ends.filter((e) => !aside.includes(e)).sort((a, b) => a.x - b.x);
  aside.forEach((e, n) => (e.y = Math.max(e.y, n ? aside[n - 1].y + 14 : 0)));
  down.forEach((e, n) => (e.x = Math.max(e.x, n ? down[n - 1].x + 50 : 0)));
  for (const e of ends) {
    const beside = aside.includes(e);
    const place = { x: beside ? chart.width - chart.right + 8 : e.x + 4, y: beside ? e.y + 4 : e.y - 6 };
    const style = { ...place, class: e.n === view.run ? "name chosen" : "name", fill: runColour(e.n) };
    chart.over.append(svg("text", style, RUNS[e.n].name));
  }
}
