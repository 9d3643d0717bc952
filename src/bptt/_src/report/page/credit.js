// A credit laid over the matrix: what of the gradient it leaves out.

const KINDS = [
    ["full", "Everything", "no truncation"],
    ["blocks", "Blocks", "every = reach"],
    ["half", "Overlapping blocks", "every = reach / 2"],
    ["window", "Windows", "every = 1"],
];

// As `bptt train --credit` takes it.
function spelling(kind, reach) {
    if (kind === "full") return "full";
    const every = EVERY[kind](reach);
    return every === reach ? `truncated:${reach}` : `truncated:every=${every},reach=${reach}`;
}

function creditControls() {
    const kinds = KINDS.map(([key, name, what]) => {
        const input = el("input", {
            type: "radio",
            name: "credit",
            value: key,
            onchange: () => set({ credit: key }),
        });
        return el("label", {}, input, el("span", {}, name, el("small", {}, what)));
    });
    const slider = el("input", {
        type: "range",
        id: "reach",
        min: 1,
        max: run().steps,
        step: 1,
        oninput: (e) => set({ reach: Number(e.target.value) }),
    });
    return el(
        "div",
        { class: "credit" },
        el("fieldset", { class: "kinds" }, el("legend", {}, "Credit laid over it"), ...kinds),
        el(
            "div",
            {},
            el(
                "label",
                { class: "reach", for: "reach" },
                "Reach",
                el("output", { id: "reach-now", for: "reach" }),
            ),
            slider,
            el("div", { id: "lost", role: "status" }),
        ),
        el(
            "div",
            { class: "losing" },
            el("p", { class: "caption" }, "Share lost, by the reach"),
            el("div", { id: "lost-curve" }),
        ),
    );
}

function drawCredit(changed) {
    const slider = document.getElementById("reach");
    const most = Math.max(...shownRuns().map((r) => r.steps));
    if (view.reach > most) view.reach = most;
    slider.max = most;
    slider.value = view.reach;
    slider.disabled = view.credit === "full";
    document.getElementById("reach-now").textContent =
        view.credit === "full" ? "all" : `${view.reach} of ${most} steps`;
    for (const input of document.querySelectorAll("input[name=credit]"))
        input.checked = input.value === view.credit;
    document.getElementById("lost").replaceChildren(...lostInWords());
    if (changed.size > 1 || !(changed.has("t") || changed.has("s")))
        drawLost(document.getElementById("lost-curve"));
}

function lostAt(r, reach) {
    if (view.credit === "full") return 0;
    return lostCurve(r, r.measure(view.measure), view.credit)[clamp(reach, 1, r.steps) - 1];
}

function lostInWords() {
    const runs = shownRuns();
    const credit = el("code", {}, spelling(view.credit, view.reach));
    if (runs.length === 1) {
        const lost = lostAt(runs[0], view.reach);
        return [
            el("strong", { "data-lost": lost.toFixed(4) }, percent(lost)),
            " of the credit is lost with ",
            credit,
        ];
    }
    const each = runs.map((r) => {
        const lost = lostAt(r, view.reach);
        return el(
            "li",
            {},
            el("span", { class: "dot", "data-run": r.index }),
            r.name,
            el("strong", { "data-lost": lost.toFixed(4) }, percent(lost)),
        );
    });
    return ["Of the credit is lost with ", credit, el("ul", {}, ...each)];
}

function drawLost(host) {
    const runs = shownRuns();
    if (view.credit === "full") {
        host.replaceChildren();
        host.parentNode.hidden = true;
        return;
    }
    host.parentNode.hidden = false;
    const most = Math.max(...runs.map((r) => r.steps), 2);
    const chart = new Chart(host, {
        height: 150,
        x: { from: 1, to: most, log: true },
        y: { from: 0, to: 1 },
        left: 44,
        label: "Share of the credit that is lost, by the reach",
    });
    chart.yAxis([0, 0.5, 1], (y) => `${100 * y} %`);
    chart.xAxis(
        [1, 3, 10, 30, 100, 300, 1000].filter((x) => x <= most),
        "reach, in steps",
    );
    for (const r of runs) {
        const points = lostCurve(r, r.measure(view.measure), view.credit).map((y, n) => [n + 1, y]);
        chart.line(points, {
            class: "curve chosen",
            stroke: runColour(r.index),
            "stroke-dasharray": view.all ? runDash(r.index) : "",
        });
    }
    chart.mark(view.reach, "", { class: "mark loss" });
    chart.node.addEventListener("click", (e) =>
        set({ reach: clamp(Math.round(chart.atX(e.clientX)), 1, most) }),
    );
}
