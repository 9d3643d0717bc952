// The second part: the two sentences, each with its own network.

class SentenceView extends View {
    constructor() {
        super("sentence-status");
        this.options = { cell: "RNN", reach: 40, weights: "torch" };
        this.build();
        this.reset();
    }

    reset() {
        const which = Object.keys(SENTENCES);
        this.learners = which.map((w) => new SentenceLearner({ which: w, ...this.options }));
        this.draw();
        this.buttons();
    }

    update() {
        for (const learner of this.learners) learner.update();
    }

    summary() {
        const [short, long] = this.learners.map((l) => percent(l.look().men[0]));
        const when = updatesOf(this.learners[0]);
        return `After ${when}, John has ${short} in the short sentence, ${long} in the long one.`;
    }

    build() {
        const { options } = this;
        this.clock = el("p", { class: "clock" });
        this.go = button("sentence-run", "Run", () => this.toggle(), { class: "go" });
        const again = (changes) => {
            Object.assign(options, changes);
            this.reset();
        };
        const reach = slider(
            "sentence-reach",
            "Reach of the credit",
            { min: 1, max: 40, value: options.reach },
            (value) => {
                options.reach = value;
                for (const learner of this.learners) learner.reach = value;
                this.draw();
            },
        );
        this.panels = ["The short way back", "The long way back"].map(sentencePanel);
        this.node = el(
            "section",
            { class: "lesson", id: "sentences", "aria-labelledby": "sentences-title" },
            el("h2", { id: "sentences-title" }, "Who was John?"),
            ...SENTENCE_WORDS.map((text) => el("p", {}, text)),
            el(
                "div",
                { class: "desk" },
                el(
                    "div",
                    { class: "buttons" },
                    this.go,
                    button("sentence-step", "One update", () => this.step()),
                    button("sentence-reset", "Reset", () => this.restart()),
                ),
                choice("sentence-cell", "Cell", KINDS, options.cell, (cell) => again({ cell })),
                choice("sentence-weights", "Initial weights", STARTS, options.weights, (weights) =>
                    again({ weights }),
                ),
                reach,
                this.clock,
            ),
            el("div", { class: "pair" }, ...this.panels.map((p) => p.node)),
            el("p", { class: "key" }, el("span", {}, ...rich(SENTENCE_KEY))),
            this.announce,
        );
    }

    buttons() {
        this.go.textContent = this.clockwork.running ? "Pause" : "Run";
    }

    draw() {
        this.clock.textContent = updatesOf(this.learners[0]);
        this.learners.forEach((learner, n) => drawSentence(learner, this.panels[n]));
    }
}

function sentencePanel(title) {
    const words = el("p", { class: "sentence" });
    const men = el("div", { class: "men" });
    const says = el("p", { class: "says" });
    const node = el("div", { class: "panel" }, el("h3", {}, title), words, men, says);
    return { node, words, men, says };
}

function drawSentence(learner, parts) {
    const { words, norms, men, name, back } = learner.look();
    const last = norms.length - 1;
    const most = greatest(norms);
    const spans = words.slice(0, -1).map((word, i) => {
        const strength = norms[i] > 0 ? clamp(1 + Math.log10(norms[i] / most) / DECADES, 0, 1) : 0;
        const rgb = table(themeNow(), "size")[Math.round(strength * (STEPS - 1))];
        const kinds = [isLight(rgb) ? "on-light" : "on-dark"];
        if (i <= last - learner.reach) kinds.push("cut");
        if (i === name) kinds.push("name");
        const span = el(
            "span",
            { class: kinds.join(" "), title: `${number(norms[i] / most)} of the largest norm` },
            word,
        );
        span.style.backgroundColor = css(rgb);
        return span;
    });
    const gaps = spans.flatMap((span) => [span, " "]);
    parts.words.replaceChildren(...gaps, el("span", { class: "asked" }, "?"));
    parts.men.replaceChildren(
        ...MEN.flatMap((man, n) => {
            const bar = el("span", { class: "bar" });
            bar.style.width = `${100 * men[n]}%`;
            return [
                el("span", {}, man),
                el("span", {}, bar),
                el("span", { class: "share" }, percent(men[n])),
            ];
        }),
    );
    const credited = learner.reach > back;
    parts.says.textContent =
        `John is ${back} steps back. Of the gradient at the last word, ` +
        `${shareOf(norms[name] / norms[last])} arrives there` +
        `${credited ? "." : `, but the credit ends after ${learner.reach}: all of that is cut.`}`;
}
