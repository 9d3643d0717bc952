// The text: point at a word, and the words before it are as dark as its loss reaches them.

const READ = new Map(); // run -> what its panel is made of

function textPanel(r) {
    const id = `text${r.index}`;
    const words = r.words.map((w, n) => {
        const option = el("span", {
            role: "option",
            class: "word",
            id: `${id}w${n}`,
            "data-word": n,
        });
        option.append(r.isText ? word(w) : w);
        return option;
    });
    const short = mean(r.words.slice(0, 400).map((w) => [...w].length)) < 1.6;
    const list = el("div", {
        id,
        class: `words${r.words.length > 150 ? " long" : ""}${short ? " dense" : ""}${r.isText ? "" : " steps"}`,
        role: "listbox",
        tabindex: 0,
        "aria-label": r.isText ? `The text, read by ${r.name}` : `The steps of ${r.name}`,
    });
    r.words.forEach((w, n) => {
        list.append(words[n]);
        if (r.isText && w.includes("\n")) list.append(el("br"));
    });
    listen(r, list);
    const head = el("h3", {}, el("span", { class: "dot", "data-run": r.index }), r.name);
    const readout = el("p", { class: "readout", "aria-live": "polite" });
    const profile = el("div", { class: "profile" });
    const node = el(
        "section",
        { class: "reading", "aria-label": r.name },
        head,
        list,
        readout,
        profile,
    );
    READ.set(r, { node, head, list, words, readout, profile });
    return node;
}

// The step whose loss a word is about, and the word that a step's loss is about.
const stepOf = (r, n) => (r.ahead ? n - 1 : n);
const wordOf = (r, t) => (r.ahead ? t + 1 : t);

function listen(r, list) {
    const at = (event) => {
        const found = event.target.closest(".word");
        return found ? Number(found.dataset.word) : null;
    };
    list.addEventListener("pointermove", (event) => {
        const n = at(event);
        if (n === null || event.pointerType === "touch") return;
        point(r, n);
    });
    list.addEventListener("pointerleave", () => set({ s: null }));
    list.addEventListener("click", (event) => {
        const n = at(event);
        if (n === null || stepOf(r, n) < 0) return;
        const again = view.held && wordOf(r, view.t) === n;
        set({ t: r.timeAt(stepOf(r, n)), s: null, held: !again });
    });
    list.addEventListener("keydown", (event) => onKey(r, event));
}

// A word that is pointed at has its loss shown; while another one's is held, its own value.
function point(r, n) {
    const step = stepOf(r, n);
    if (view.held) {
        if (n <= r.steps - 1 && n <= view.t) set({ s: n });
    } else if (step >= 0) {
        set({ t: r.timeAt(step), s: null });
    }
}

function onKey(r, event) {
    const n = wordOf(r, r.timeAt(view.t));
    const moves = {
        ArrowLeft: -1,
        ArrowRight: 1,
        ArrowUp: lineAway(r, n, -1),
        ArrowDown: lineAway(r, n, 1),
    };
    const first = r.ahead ? 1 : 0;
    let to = null;
    if (event.key in moves) to = n + moves[event.key];
    else if (event.key === "Home") to = first;
    else if (event.key === "End") to = r.words.length - 1;
    else if (event.key === "Escape") set({ held: false, s: null });
    else if (event.key === "Enter" || event.key === " ") set({ held: !view.held });
    else return;
    event.preventDefault();
    if (to === null || to < first || to >= r.words.length) return;
    const back = to < n;
    const t = r.times.findLast((time) => time <= stepOf(r, to));
    const next = back ? t : r.times.find((time) => time >= stepOf(r, to));
    if (next !== undefined) set({ t: next, s: null });
}

// How many words away the one above or below is.
function lineAway(r, n, direction) {
    const boxes = READ.get(r).words;
    const here = boxes[n].getBoundingClientRect();
    let best = 0;
    let least = Infinity;
    for (let m = n + direction; m >= 0 && m < boxes.length; m += direction) {
        const box = boxes[m].getBoundingClientRect();
        const down = Math.abs(box.top - here.top);
        if (down < here.height / 2) continue;
        const cost = down * 20 + Math.abs((box.left + box.right - here.left - here.right) / 2);
        if (cost >= least && down > here.height * 3) break;
        if (cost < least) [least, best] = [cost, m - n];
    }
    return best;
}

function drawTexts() {
    const panels = document.getElementById("texts");
    const wanted = shownRuns();
    panels.classList.toggle("several", wanted.length > 1);
    panels.replaceChildren(...wanted.map((r) => (READ.get(r) ? READ.get(r).node : textPanel(r))));
    wanted.forEach(drawText);
}

function drawText(r) {
    const { words, list, head } = READ.get(r);
    const measure = r.measure(view.measure);
    const row = r.rowAt(view.t);
    const t = r.timeAt(view.t);
    const chosen = wordOf(r, t);
    head.hidden = !view.all;
    words.forEach((w, n) => {
        const rgb = n < r.steps && n <= t ? colour(measure, row, r.columnAt(n), view) : null;
        w.style.backgroundColor = rgb ? css(rgb) : "";
        w.classList.toggle("on-light", rgb !== null && isLight(rgb));
        w.classList.toggle("on-dark", rgb !== null && !isLight(rgb));
        w.classList.toggle("chosen", n === chosen);
        w.classList.toggle("later", n > chosen);
        w.classList.toggle("held", n === chosen && view.held);
        w.classList.toggle("pointed", n === view.s && n !== chosen);
        w.setAttribute("aria-selected", String(n === chosen));
    });
    list.setAttribute("aria-activedescendant", words[chosen].id);
    bringIntoView(list, words[chosen]);
    drawReadout(r, measure, row);
    drawProfile(r, row);
}

// Scroll a long text, and only it, to a word that is outside what is seen of it.
function bringIntoView(list, w) {
    const above = w.offsetTop + w.offsetHeight - list.offsetTop < list.scrollTop;
    const below = w.offsetTop - list.offsetTop > list.scrollTop + list.clientHeight;
    if (above || below) list.scrollTop = w.offsetTop - list.offsetTop - list.clientHeight / 2;
}

// In words: whose loss, how large, and what there is of it at the step that is pointed at.
function drawReadout(r, measure, row) {
    const { readout } = READ.get(r);
    const t = r.timeAt(view.t);
    const about = r.target(t) ?? r.token(t);
    const said = [el("span", { class: "loss" }, "The loss"), ` at step ${t}`];
    if (about !== null)
        said.push(r.target(t) !== null ? ", of predicting " : ", after ", quoted(about));
    said.push(`: ${number(r.loss(row))} nats. `);
    const far = farthest(r, measure, row);
    if (view.s !== null && view.s <= t && view.s < r.steps) {
        said.push(...valueAt(r, measure, row, view.s), ...attributionAt(r, measure, row, view.s));
    } else if (far !== null) {
        const name = measure.signed ? "of its attribution" : `of its gradient (${measure.label})`;
        said.push(`99 % ${name} lies within the last ${far} ${far === 1 ? "step" : "steps"}.`);
    }
    readout.replaceChildren(...said);
}

function valueAt(r, measure, row, s) {
    const column = r.columnAt(s);
    const value = measure.value(row, column);
    const share = Number.isNaN(value)
        ? ""
        : `, ${percent(10 ** (measure.log(row, column) - measure.tops[row]))} of its largest`;
    const where = [`At step ${s}`];
    if (r.token(s) !== null) where.push(", ", quoted(r.token(s)));
    const means = r.exact ? "" : `, the mean of ${r.block} steps`;
    const text = Number.isNaN(value) ? "not followed or not defined" : number(value);
    return [...where, `: ${measure.label} `, el("b", {}, text), `${share}${means}.`];
}

// What the input of that step contributes, beside a state's gradient.
function attributionAt(r, measure, row, s) {
    const attribution = r.measures.find((m) => m.signed);
    const value = attribution && attribution !== measure ? attribution.value(row, r.columnAt(s)) : NONE;
    return Number.isNaN(value)
        ? []
        : [" Attribution to its input: ", el("b", { class: "attributed" }, number(value)), "."];
}

const quoted = (token) => el("q", {}, word(token));

// The least number of last steps that hold 99 % of a row's sum.
function farthest(r, measure, row) {
    const end = r.columnAt(r.rowTimes(row).at(-1));
    const sizes = Array.from({ length: end + 1 }, (_, c) => {
        const log = measure.log(row, end - c);
        return Number.isNaN(log) ? 0 : 10 ** (log - measure.tops[row]);
    });
    const all = sizes.reduce((sum, v) => sum + v, 0);
    if (!(all > 0)) return null;
    let sum = 0;
    const place = sizes.findIndex((v) => (sum += v) >= 0.99 * all);
    return Math.min((place < 0 ? end + 1 : place + 1) * r.block, r.timeAt(view.t) + 1);
}

// The chosen loss in every state at once, over the steps.
function drawProfile(r, row) {
    const host = READ.get(r).profile;
    const logs = r.states.flatMap((m) => [...r.row(m.logs, row)].filter(Number.isFinite));
    if (!logs.length) {
        host.replaceChildren();
        return;
    }
    const top = greatest(logs);
    const bottom = Math.max(top - view.decades, Math.min(...logs) - 0.1);
    const chart = new Chart(host, {
        height: view.all ? 128 : 168,
        x: { from: 0, to: r.steps - 1 },
        y: { from: Math.min(bottom, top - 1), to: top + 0.2 },
        label: `Size of the gradient of the loss at step ${view.t}, over the steps before it`,
    });
    chart.yAxis(decadeTicks(chart.y.from, chart.y.to, 5), decade);
    chart.xAxis(wholeTicks(0, r.steps - 1, chart.width > 560 ? 12 : 6), "step s");
    const chosen = r.measure(view.measure);
    r.states.forEach((m, n) => {
        const points = [...r.row(m.logs, row)].map((y, c) => [c * r.block + (r.block - 1) / 2, y]);
        const width = m === chosen ? 2.4 : 1.3;
        chart.line(points, {
            class: `state ${m.key.endsWith("/cell") ? "cell" : ""}`,
            stroke: stateColour(r, n),
            "stroke-width": width,
            "data-state": m.key,
        });
    });
    chart.mark(r.timeAt(view.t), "", { class: "mark loss" });
    if (view.s !== null && view.s <= view.t) chart.mark(view.s, "", { class: "mark faint" });
    if (r.states.length > 1) host.append(legend(r));
}

function stateColour(r, n) {
    const layers = [...new Set(r.raw.states.map((s) => s.layer))];
    const place = layers.indexOf(r.raw.states[n].layer) / Math.max(1, layers.length - 1);
    const light = themeNow() === "light";
    return css(
        light
            ? oklch(0.62 - 0.22 * place, 0.13, 190 + 90 * place)
            : oklch(0.6 + 0.28 * place, 0.13, 270 - 80 * place),
    );
}

function legend(r) {
    const entries = r.states.map((m, n) => {
        const line = svg("line", {
            x1: 0,
            x2: 22,
            y1: 5,
            y2: 5,
            class: `state ${m.key.endsWith("/cell") ? "cell" : ""}`,
            stroke: stateColour(r, n),
        });
        return el(
            "li",
            {},
            svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, line),
            ` ${m.label}`,
        );
    });
    return el("ul", { class: "legend" }, ...entries);
}
