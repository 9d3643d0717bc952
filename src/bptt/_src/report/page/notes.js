// What is said in words: the runs, the verdict, its figures, the advice.

const ARROWS = { vanishing: "↘", exploding: "↗", healthy: "→", dead: "×", undetermined: "?" };

function runCards() {
    const lags = Math.max(...RUNS.map((r) => r.raw.by_lag.lag.length));
    const cards = RUNS.map((r) => {
        const reach = r.raw.horizon && r.raw.horizon.lag !== null ? `horizon ${horizonOf(r)}` : "";
        return el(
            "button",
            {
                type: "button",
                role: "radio",
                class: "card",
                "data-run": r.index,
                onclick: () => choose(r.index),
                onkeydown: onCardKey,
            },
            el(
                "span",
                { class: "name" },
                el("span", { class: "dot", "data-run": r.index }),
                r.name,
            ),
            sparkline(r.raw, { lags }),
            el("span", { class: "kind" }, `${r.raw.verdict.kind}${reach ? `, ${reach}` : ""}`),
        );
    });
    return el("div", { class: "cards", role: "radiogroup", "aria-label": "Runs" }, ...cards);
}

function choose(n) {
    const r = RUNS[n];
    set({
        run: n,
        measure: r.measure(view.measure).key,
        t: r.timeAt(Math.min(view.t, r.steps - 1)),
        s: null,
    });
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
    for (const dot of document.querySelectorAll(".dot"))
        dot.style.backgroundColor = runColour(Number(dot.dataset.run));
    for (const card of document.querySelectorAll(".card")) card.style.color = "";
    for (const curve of document.querySelectorAll(".card .curve")) {
        const n = Number(curve.closest(".card").dataset.run);
        curve.style.stroke = runColour(n);
        curve.style.strokeDasharray = runDash(n);
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
    const blocks = r.exact
        ? ""
        : ` Longer than ${r.columns} steps, so the matrix and the words show means of ${r.block} ` +
          "steps; the curves by lag are of single steps.";
    return [
        el("h1", {}, r.name),
        el(
            "p",
            { class: "words" },
            el("span", { class: "arrow", "aria-hidden": "true" }, ARROWS[kind] || "·"),
            words,
        ),
        el(
            "p",
            { class: "module" },
            el("code", {}, r.raw.module),
            ` ${size}${followed}${lags}.${blocks}`,
        ),
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
        figure(
            "Suggested truncation",
            [suggested && suggested.reach ? String(suggested.reach) : "–"],
            suggestion(suggested),
        ),
        figure("Loss", [given.length ? number(mean(given)) : "–"], "nats a step, the mean"),
    ];
}

// An error needs two digits at most.
function error(x) {
    return x > 1e-3 ? String(Number(x.toPrecision(2))) : number(x);
}

function suggestion(suggested) {
    if (!suggested) return "";
    if (!suggested.reach) return suggested.why || "the lags followed do not tell";
    const { every, reach, bias, measured } = suggested;
    const known =
        typeof measured === "number"
            ? `bias measured: ${percent(measured)}`
            : `an estimate for a bias of ${percent(bias)}, not measured`;
    return `every=${every}, reach=${every + reach}; ${known}`;
}

function figure(name, value, what) {
    return el(
        "div",
        {},
        el("dt", {}, name),
        el("dd", {}, el("span", { class: "value" }, ...value), el("span", { class: "what" }, what)),
    );
}

function advice(r) {
    const items = (r.raw.advice || []).map((a) => {
        const given = Object.entries(a.figures || {}).map(([name, x]) =>
            el("li", {}, `${name.replaceAll("_", " ")} `, el("b", {}, number(x))),
        );
        return el(
            "li",
            {},
            el("p", {}, ...withCode(a.text)),
            given.length ? el("ul", { class: "given" }, ...given) : null,
            a.source ? el("p", { class: "source" }, a.source) : null,
        );
    });
    return items.length
        ? [el("ol", {}, ...items)]
        : [el("p", { class: "empty" }, "Nothing to change.")];
}

// Names and calls of bptt as code.
function withCode(text) {
    const parts = text.split(/((?:credit=)?bptt\.[\w.]*\w(?:\([^()]*\))?)/);
    return parts.map((p, n) => (n % 2 ? el("code", {}, p) : p));
}
