// What is looked at: one object.

const RUNS = JSON.parse(document.getElementById("data").textContent).map(
    (raw, n) => new Run(raw, n),
);

const view = {
    run: 0,
    all: false, // every run side by side
    t: 0, // the loss
    s: null, // an earlier step that is pointed at
    held: false, // whether the loss stays while others are pointed at
    measure: RUNS[0].measures[0].key,
    scale: "loss",
    decades: 4,
    credit: "full",
    reach: 1,
    relative: RUNS.length > 1,
};

function run() {
    return RUNS[view.run];
}

function shownRuns() {
    return view.all ? RUNS : [run()];
}

const COLOURS = { light: [], dark: [] };
// Okabe and Ito's order of hues, each as light as the page needs.
for (const [theme, lightness] of [
    ["light", 0.54],
    ["dark", 0.78],
]) {
    for (const [hue, chroma] of [
        [250, 0.14],
        [50, 0.14],
        [165, 0.11],
        [345, 0.15],
        [85, 0.12],
        [300, 0.15],
    ]) {
        COLOURS[theme].push(css(oklch(lightness, chroma, hue)));
    }
}
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "5 2", "1 3"];

function runColour(n) {
    const colours = COLOURS[themeNow()];
    return colours[n % colours.length];
}

// Another dash for each colour, and others again for the runs after the last colour.
function runDash(n) {
    return DASHES[(n + Math.floor(n / COLOURS.light.length)) % DASHES.length];
}

// The last loss that is about a word, not a full stop; the last of all where there is none.
function lastWord(r) {
    const isWord = (t) => /[\p{L}\p{N}]/u.test(r.target(t) ?? r.token(t) ?? "");
    return r.times.findLast(isWord) ?? r.times.at(-1);
}

// Show every run side by side, or one. A loss that nobody has chosen yet is the last word of each.
function showAll(all) {
    const longest = RUNS.reduce((a, b) => (b.steps > a.steps ? b : a));
    if (all && view.t === lastWord(run())) set({ all, t: lastWord(longest) });
    else set({ all, t: all ? view.t : run().timeAt(Math.min(view.t, run().steps - 1)) });
}

// What the address says after #, as in flow.html#t=12&reach=8&theme=dark, is where the view begins.
function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const whole = (name, low, high) => clamp(Math.round(Number(given.get(name)) || low), low, high);
    if (given.has("run")) view.run = whole("run", 0, RUNS.length - 1);
    view.t = lastWord(run());
    const suggested = run().raw.suggested_reach?.reach; // K, for every=K, reach=2K
    view.credit = suggested ? "half" : "blocks";
    view.reach = clamp(suggested ? 2 * suggested : Math.ceil(run().steps / 4), 1, run().steps);
    if (given.has("t")) view.t = run().timeAt(whole("t", 0, run().steps - 1));
    if (given.has("s")) view.s = whole("s", 0, view.t);
    if (given.has("reach")) view.reach = whole("reach", 1, run().steps);
    if (given.get("credit") in EVERY || given.get("credit") === "full")
        view.credit = given.get("credit");
    if (given.has("measure")) view.measure = run().measure(given.get("measure")).key;
    if (given.has("all")) showAll(RUNS.length > 1);
    if (["light", "dark"].includes(given.get("theme")))
        document.documentElement.dataset.theme = given.get("theme");
}
