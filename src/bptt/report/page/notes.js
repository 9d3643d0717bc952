// What is said in words and tables: the runs, the verdict, figures, advice and dynamics.

const ARROWS = { vanishing: "↘", exploding: "↗", healthy: "→", dead: "×", undetermined: "?" };

function runCards() {
  const lags = Math.max(...RUNS.map((r) => r.raw.by_lag.lag.length));
  const cards = RUNS.map((r) => {
    const reach = r.raw.horizon && r.raw.horizon.lag !== null ? `horizon ${horizonOf(r)}` : "";
    return el(
      "button",
      { type: "button", role: "radio", class: "card", "data-run": r.index, onclick: () => choose(r.index), onkeydown: onCardKey },
      el("span", { class: "name" }, el("span", { class: "dot", "data-run": r.index }), r.name),
      sparkline(r.raw, { lags }),
      el("span", { class: "kind" }, `${r.raw.verdict.kind}${reach ? `, ${reach}` : ""}`),
    );
  });
  return el("div", { class: "cards", role: "radiogroup", "aria-label": "Runs" }, ...cards);
}

function choose(n) {
  const r = RUNS[n];
  set({ run: n, measure: r.measure(view.measure).key, t: r.timeAt(Math.min(view.t, r.steps - 1)), s: null });
}

function onCardKey(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const n = (view.run + by + RUNS.length) % RUNS.length;
  choose(n);
  document.querySelector(`.card[data-run="${n}"]`).focus();
}

function horizonOf(r) {
  const { horizon } = r.raw;
  if (!horizon || horizon.lag === null) return "–";
  return `${horizon.reached ? "" : "≥ "}${horizon.lag}`;
}

function drawRun() {
  for (const card of document.querySelectorAll(".card")) {
    const chosen = Number(card.dataset.run) === view.run;
    card.setAttribute("aria-checked", String(chosen));
    card.tabIndex = chosen ? 0 : -1;
  }
  for (const dot of document.querySelectorAll(".dot")) dot.style.backgroundColor = runColour(Number(dot.dataset.run));
  for (const card of document.querySelectorAll(".card")) card.style.color = "";
  for (const curve of document.querySelectorAll(".card .curve")) {
    curve.style.stroke = runColour(Number(curve.closest(".card").dataset.run));
  }
  const r = run();
  document.getElementById("verdict").replaceChildren(...verdict(r));
  document.getElementById("figures").replaceChildren(...figures(r));
  document.getElementById("advice").replaceChildren(...advice(r));
  document.getElementById("dynamics").replaceChildren(...dynamics(r));
}

function verdict(r) {
  const { kind, words } = r.raw.verdict;
  const size = `${r.steps} steps, ${r.raw.batch} ${r.raw.batch === 1 ? "sequence" : "sequences"}`;
  const followed = r.times.length < r.steps ? `, ${r.times.length} losses followed` : "";
  const lags = r.raw.lags < r.steps ? `, lags up to ${r.raw.lags - 1}` : "";
  const blocks = r.exact ? "" : ` Longer than ${r.columns} steps, so the matrix and the words show means of ${r.block} steps; the curves by lag are of single steps.`;
  return [
    el("h1", {}, r.name),
    el("p", { class: "words" }, el("span", { class: "arrow", "aria-hidden": "true" }, ARROWS[kind] || "·"), words),
    el("p", { class: "module" }, el("code", {}, r.raw.module), ` ${size}${followed}${lags}.${blocks}`),
  ];
}

function figures(r) {
  const { decay, horizon, suggested_reach: suggested, losses } = r.raw;
  const given = losses.filter((v) => v !== null);
  const part = horizon ? `lag that holds ${percent(1 - horizon.threshold)}` : "";
  const fit = decay ? `a step, lags ${decay.first} to ${decay.last}` : "no fit";
  const beta = decay ? [number(decay.beta), el("small", {}, ` ± ${error(decay.error)}`)] : ["–"];
  return [
    figure("Horizon", [horizonOf(r)], part),
    figure("Decay β", beta, fit),
    figure("Suggested truncation", [suggested && suggested.reach ? String(suggested.reach) : "–"], suggestion(suggested)),
    figure("Loss", [given.length ? number(mean(given)) : "–"], "nats a step, the mean"),
  ];
}

// An error needs two digits at most.
function error(x) {
  return x > 1e-3 ? String(Number(x.toPrecision(2))) : number(x);
}

function suggestion(suggested) {
  if (!suggested) return "";
  if (!suggested.reach) return "the lags followed do not tell";
  return `every=${suggested.reach}, reach=${2 * suggested.reach}, for a bias of ${percent(suggested.bias)}`;
}

function figure(name, value, what) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, el("span", { class: "value" }, ...value), el("span", { class: "what" }, what)));
}

function advice(r) {
  const items = (r.raw.advice || []).map((a) => {
    const given = Object.entries(a.figures || {}).map(([name, x]) => el("li", {}, `${name.replaceAll("_", " ")} `, el("b", {}, number(x))));
    return el("li", {}, el("p", {}, ...withCode(a.text)), given.length ? el("ul", { class: "given" }, ...given) : null, a.source ? el("p", { class: "source" }, a.source) : null);
  });
  return items.length ? [el("ol", {}, ...items)] : [el("p", { class: "empty" }, "Nothing to change.")];
}

// Names and calls of bptt as code.
function withCode(text) {
  const parts = text.split(/((?:credit=)?bptt\.[\w.]*\w(?:\([^()]*\))?)/);
  return parts.map((p, n) => (n % 2 ? el("code", {}, p) : p));
}

const COLUMNS = [
  ["Layer", (d) => String(d.layer)],
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
  const each = (d.lyapunov || []).slice(0, errors.length ? 2 : 4).map((x, n) => (errors[n] ? `${number(x)} ± ${error(errors[n])}` : number(x)));
  return each.join(", ") || "–";
}

// Of each gate: how often it is as good as shut, and as good as open.
function gates(layers) {
  const known = layers.filter((d) => d.gates);
  if (!known.length) return null;
  const rows = known.flatMap((d) => Object.entries(d.gates).map(([name, ends]) => [d.layer, name, ...ends.map(share)]));
  const head = el("tr", {}, ...["Layer", "Gate", "shut, below 0.05", "open, above 0.95"].map((name) => el("th", { scope: "col" }, name)));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell, n) => el(n < 2 ? "th" : "td", n < 2 ? { scope: "row" } : {}, String(cell)))));
  return el("table", { id: "gates" }, el("thead", {}, head), el("tbody", {}, ...body));
}

const share = (x) => (x === null || x === undefined ? "–" : percent(x));

function known(values, of) {
  const there = (values || []).filter((v) => v !== null);
  return there.length ? of(there) : null;
}

function dynamics(r) {
  const layers = r.raw.dynamics;
  if (!layers || !layers.length) return [el("p", { class: "empty" }, "Not measured for this module.")];
  const head = el("tr", {}, ...COLUMNS.map(([name]) => el("th", { scope: "col" }, ...rich(name))));
  const rows = layers.map((d) => el("tr", {}, ...COLUMNS.map(([, of], n) => (n ? el("td", {}, of(d)) : el("th", { scope: "row" }, of(d))))));
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  const found = [el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Dynamics, layer by layer" }, table, gates(layers))];
  if (layers.some((d) => known(d.jacobian_norms, (v) => v.length) > 1)) found.push(el("p", { class: "caption" }, ...rich("‖J‖ = ‖∂h_t/∂h_{t−1}‖, step by step")), el("div", { id: "jacobians" }));
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
  const chart = new Chart(host, { height: 150, x: { from: 0, to: Math.max(1, run().steps - 1) }, y: { from, to }, left: 52, label: "Norm of the Jacobian, step by step" });
  chart.yAxis(levels(from, to), (y) => number(10 ** y));
  chart.xAxis(wholeTicks(0, run().steps - 1, chart.width > 560 ? 12 : 6), "step t");
  layers.forEach((d, n) => {
    const stroke = runColour(n);
    chart.line((d.jacobian_norms || []).map((v, t) => [t, logOf(v)]), { class: "curve chosen", stroke, "stroke-dasharray": DASHES[n % 6] });
    if (d.bound > 0) chart.line([[0, logOf(d.bound)], [run().steps, logOf(d.bound)]], { class: "bound" });
  });
}

// Ticks that read well where a scale spans less than some decades.
function levels(from, to) {
  if (to - from > 2) return decadeTicks(from, to, 4);
  const all = [];
  for (let e = Math.floor(from); e <= to; e += 1) for (const m of [1, 2, 5]) all.push(e + Math.log10(m));
  const inside = all.filter((y) => y >= from && y <= to);
  if (inside.length > 1) return inside;
  return [0.1, 0.5, 0.9].map((share) => Math.log10(Number((10 ** (from + share * (to - from))).toPrecision(2))));
}
