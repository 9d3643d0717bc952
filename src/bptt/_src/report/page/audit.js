// The page put together.

const MAPS = [
    new WeightMap(CREDIT, { rows: "loss of step t", columns: "credits step s", said: sayCredit }),
    new WeightMap(MEMORY, { rows: "state after step t", columns: "holds step s", said: sayMemory }),
];

const HAS_CALLS = REPORT.calls.some((c) => c.length);
const HAS_ENDS = REPORT.ends.some((e) => e.length);
const HAS_FAULTS = REPORT.findings.some((f) => f.is_fault && f.t !== null && f.s !== null);
const NOWHERE = "Point at a weight, or move with the arrow keys.";

function sayCredit(t, s) {
    const loss = `Loss of step ${called(t)}`;
    if (!shownSequences().some((q) => REPORT.has_loss[q][t]))
        return `No loss arrived at step ${called(t)}.`;
    if (s === null) return `${loss}. ${NOWHERE}`;
    return `${loss}, step ${called(s)}: weight ${number(CREDIT.at(view.of, t, s))}${across(t, s)}.`;
}

function sayMemory(t, s) {
    const state = `State after step ${called(t)}`;
    if (s === null) return `${state}. ${NOWHERE}`;
    const share = MEMORY.at(view.of, t, s);
    const held =
        share === 0
            ? "not held"
            : share === 1
              ? "held"
              : `held in ${percent(share)} of the sequences`;
    return `${state}, step ${called(s)}: ${held}${across(t, s)}.`;
}

function across(t, s) {
    if (isAcross(t, s, true)) return ", of another episode";
    return isAcross(t, s, false) ? ", of another episode in some sequences" : "";
}

function verdict() {
    const faults = REPORT.findings.filter((f) => f.is_fault).length;
    const words = faults ? `${faults} ${faults === 1 ? "fault" : "faults"}` : "No faults";
    return el(
        "section",
        { id: "verdict", "aria-label": "Verdict" },
        el("h1", {}, el("bdi", {}, REPORT.title)),
        el("p", { class: `words ${faults ? "loss" : ""}` }, words),
        el("p", { class: "module" }, el("code", {}, REPORT.module), `, ${REPORT.counts}`),
    );
}

function controls() {
    const names = REPORT.sequences.map((name, q) => [String(q), `sequence ${name}`]);
    const choices = names.length > 1 ? [[MEAN, "the mean of all"], ...names] : names;
    const box = (key, text) =>
        el(
            "label",
            { class: "choice check" },
            el("input", {
                type: "checkbox",
                id: key,
                checked: view[key],
                onchange: (e) => set({ [key]: e.target.checked }),
            }),
            el("span", {}, text),
        );
    return el(
        "div",
        { class: "controls", role: "group", "aria-label": "What is shown" },
        selector("of", "Sequence", choices, String(view.of), (of) =>
            set({ of: of === MEAN ? MEAN : Number(of) }),
        ),
        HAS_CALLS ? box("calls", "Calls") : null,
        HAS_ENDS ? box("ends", "Ends of episodes") : null,
    );
}

function key() {
    const sample = (kind, text, draw) =>
        el(
            "li",
            {},
            svg("svg", { width: 26, height: 14, "aria-hidden": "true" }, draw(kind)),
            ` ${text}`,
        );
    const line = (kind) => svg("line", { x1: 0, x2: 26, y1: 7, y2: 7, class: kind });
    const circle = (kind) => svg("circle", { cx: 13, cy: 7, r: 5.5, class: kind });
    return el(
        "ul",
        { class: "legend" },
        HAS_CALLS ? sample("call", "within one call, right of and above it", line) : null,
        HAS_ENDS ? sample("end-of-episode", "another episode, left of and below it", line) : null,
        HAS_FAULTS ? sample("ring", "where a fault was seen first", circle) : null,
    );
}

const HOW = {
    findings: [
        "A fault is wrong. A fact is so, and may be meant.",
        "Each names the first place at which it was seen, and a link shows it.",
    ],
    maps: [
        "Credit: how much of the loss of step t is credited to step s. 1 is ordinary " +
            "backpropagation, 0 is a cut, 2 is counted twice.",
        "Memory: whether the state after step t still holds what it was given at step s.",
        "Move with the arrow keys, hold with Enter or a click, let go with Escape.",
    ],
};

function build() {
    const end = "This file is whole: it asks for nothing from anywhere.";
    document.getElementById("page").replaceChildren(
        verdict(),
        part("findings", "Findings", HOW.findings, findings()),
        controls(),
        part(
            "maps",
            "Credit and memory",
            HOW.maps,
            el("div", { id: "maps" }, ...MAPS.map((m) => m.node)),
            el("div", { id: "legend" }),
            key(),
        ),
        el("footer", {}, el("p", {}, "Made by ", el("code", {}, "bptt"), `. ${end}`)),
    );
}

function drawEach(changed) {
    const whole = changed.has("everything") || changed.has("of");
    if (whole) document.getElementById("of").value = String(view.of);
    if (changed.has("everything"))
        document.getElementById("legend").replaceChildren(weightLegend());
    for (const map of MAPS) whole ? map.draw() : map.drawOver();
}

Object.assign(view, fromAddress());
build();
themeButton();
draws(drawEach);
drawAll();
drawsOnResize();
window.addEventListener("hashchange", toAddress);
