// Everything put together; and the door for those who want to check the numbers.

// The gradients of a network for tokens and targets [T, B] (targets of -1: no loss), from given
// parameters, each a flat list in torch.nn's order, and the norms [T, T] of the matrix.
function gradientsOf({ cell, inputs, hidden, outputs, parameters: given, tokens, targets, reach }) {
    const net = network(cell, inputs, hidden, outputs);
    for (const name of Object.keys(PARAMETERS)) {
        if (given[name]?.length !== net.theta[name].length)
            throw new Error(
                `parameters.${name} has ${given[name]?.length} numbers, ` +
                    `expected ${net.theta[name].length}`,
            );
        net.theta[name].set(given[name]);
    }
    const [T, B] = [tokens.length, tokens[0].length];
    const flat = (rows) => Int32Array.from(rows.flat());
    const run = forward(net, flat(tokens), T, B);
    const losses = backward(net, run, flat(targets), reach);
    const found = Object.keys(PARAMETERS).map((name) => [name, [...net.gradient[name]]]);
    const norms = new Float64Array(T * T);
    backward(net, run, flat(targets), T, norms);
    return { losses: [...losses], gradients: Object.fromEntries(found), norms: [...norms] };
}

const copying = new CopyView();
const sentences = new SentenceView();
const views = [copying, sentences];

document
    .getElementById("page")
    .replaceChildren(
        el(
            "section",
            { id: "intro" },
            el("h1", {}, "How far back must a loss reach?"),
            ...INTRO_WORDS.map((text) => el("p", {}, text)),
        ),
        ...views.map((v) => v.node),
        el("footer", {}, ...FOOT_WORDS.map((text) => el("p", {}, ...rich(text)))),
        sharedHatch(),
    );
draws(() => {
    drawShades();
    for (const each of views) each.draw();
});
themeButton();
drawsOnResize();
drawAll();

// Go on by n updates at once, and return what is then seen of both networks.
const advance = (view, seen) => (n) => {
    for (let k = 0; k < n; k += 1) view.update();
    view.draw();
    return view.learners.map(seen);
};
window.bptt = {
    gradients: (json) => JSON.stringify(gradientsOf(JSON.parse(json))),
    copying: advance(copying, (learner) => learner.curve.at(-1)),
    sentences: advance(sentences, (learner) => learner.look()),
};
