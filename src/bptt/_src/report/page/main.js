// The page put together.

function controls() {
    const all = el("input", {
        type: "checkbox",
        id: "all",
        onchange: (e) => showAll(e.target.checked),
    });
    return el(
        "div",
        { class: "controls", role: "group", "aria-label": "What is shown" },
        selector("measure", "Gradient of", [], view.measure, (key) => set({ measure: key })),
        selector(
            "scale",
            "Full colour",
            [
                ["loss", "at each loss's largest"],
                ["matrix", "at the matrix's largest"],
            ],
            view.scale,
            (scale) => set({ scale }),
        ),
        selector(
            "decades",
            "Faded out",
            [
                ["2", "at a hundredth of it"],
                ["4", "at 10⁻⁴ of it"],
                ["8", "at 10⁻⁸ of it"],
            ],
            String(view.decades),
            (d) => set({ decades: Number(d) }),
        ),
        RUNS.length > 1
            ? el("label", { class: "choice check" }, all, el("span", {}, "All runs side by side"))
            : null,
    );
}

function drawControls() {
    const found = new Map();
    for (const r of shownRuns())
        for (const m of r.measures) if (!found.has(m.key)) found.set(m.key, m.label);
    const select = document.getElementById("measure");
    const options = [...found].map(([key, text]) => el("option", { value: key }, text));
    select.replaceChildren(...options);
    select.value = found.has(view.measure) ? view.measure : run().measure(view.measure).key;
    for (const id of ["scale", "decades"]) document.getElementById(id).value = String(view[id]);
    const all = document.getElementById("all");
    if (all) all.checked = view.all;
}

function relativeChoice() {
    const box = el("input", {
        type: "checkbox",
        id: "relative",
        checked: view.relative,
        onchange: (e) => set({ relative: e.target.checked }),
    });
    return el("label", { class: "choice check" }, box, el("span", {}, "Relative to the first lag"));
}

function key() {
    const sample = (kind, text) =>
        el(
            "li",
            {},
            svg(
                "svg",
                { width: 26, height: 10, "aria-hidden": "true" },
                svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: kind }),
            ),
            " ",
            ...rich(text),
        );
    const band = svg(
        "svg",
        { width: 26, height: 10, "aria-hidden": "true" },
        svg("rect", { width: 26, height: 10, class: "band key" }),
    );
    return el(
        "ul",
        { class: "legend" },
        sample("curve key", "mean"),
        el("li", {}, band, " 10 % to 90 %"),
        sample("fit", "fit, β a step"),
        sample("bound", "bound (β_W·β_h)ᵏ"),
        sample("mark faint key", "suggested truncation"),
    );
}

// How to read each part; _x is set below the line.
const HOW = {
    text: [
        "Point at a word, or move with the arrow keys: the words before it are as strong as the " +
            "loss of predicting it reaches their state.",
        "Click, or press Enter, to hold it; then point at an earlier one to read its value.",
    ],
    steps: [
        "Point at a step, or move with the arrow keys: the steps before it are as strong as its " +
            "loss reaches their state.",
        "Click, or press Enter, to hold it; then point at an earlier one to read its value.",
    ],
    map: [
        "A row is the loss of a step t, a column a step s that it reaches: ‖∂L_t/∂state_s‖, the " +
            "mean over the sequences. Dotted: not followed, or not defined.",
        "A credit is laid over it. Hatched is what it leaves out. The share lost is the sum of " +
            "what is hatched over the sum of the whole matrix, of the state chosen above. Sizes " +
            "are summed; in a gradient terms may cancel, and then less or more of it is lost.",
    ],
    lag: [
        "The same by the distance k = t − s, all of the state taken together: the mean " +
            "over the losses and sequences, and where the middle four fifths lie.",
        "β is how much of it passes a step. The horizon is the lag that holds nearly all. Where " +
            "one layer's bound is known, no curve can lie above its line.",
    ],
    advice: ["Each with the figures that led to it, and its source."],
    dynamics: [
        "J is a step's Jacobian, W the recurrent weights, ρ their spectral radius. Saturated: " +
            "where the activation hardly slopes; dead: units that never change.",
        "A largest exponent below 0 forgets, above 0 is chaotic.",
    ],
};

function build() {
    const place = (id) => el("div", { id });
    const isText = run().isText;
    const end = "This file is whole: it asks for nothing from anywhere.";
    document
        .getElementById("page")
        .replaceChildren(
            RUNS.length > 1 ? runCards() : "",
            el("section", { id: "verdict", "aria-label": "Verdict", "aria-live": "polite" }),
            el("dl", { id: "figures" }),
            controls(),
            part(
                "text",
                isText ? "The text" : "The steps",
                HOW[isText ? "text" : "steps"],
                place("texts"),
            ),
            part("map", "The matrix", HOW.map, mapping()),
            part("lag", "By lag", HOW.lag, relativeChoice(), place("by-lag"), key()),
            part("advice", "What to do", HOW.advice, place("advice")),
            part("dynamics", "Dynamics", HOW.dynamics, place("dynamics")),
            el("footer", {}, el("p", {}, "Made by ", el("code", {}, "bptt"), `. ${end}`)),
        );
}

function mapping() {
    return el("div", { id: "mapping" }, el("div", { id: "maps" }), creditControls());
}

function drawEach(changed) {
    const has = (...keys) => changed.has("everything") || keys.some((key) => changed.has(key));
    document.getElementById("page").classList.toggle("all", view.all);
    if (has("run", "all")) drawControls();
    if (has("run", "all")) drawTexts();
    else if (has("t", "s", "held", "measure", "scale", "decades")) shownRuns().forEach(drawText);
    drawMaps(changed);
    drawCredit(changed);
    if (has("run", "relative")) drawByLag(document.getElementById("by-lag"));
    if (has("run")) drawRun();
    if (has("run")) drawJacobians();
    if (has("all"))
        for (const dot of document.querySelectorAll(".dot"))
            dot.style.backgroundColor = runColour(Number(dot.dataset.run));
}

fromAddress();
build();
themeButton();
draws(drawEach);
drawAll();
drawsOnResize();
