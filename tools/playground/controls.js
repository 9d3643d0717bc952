// Sliders, choices and buttons.

function slider(id, name, { min, max, value, write = String }, change) {
    const output = el("output", { for: id }, write(value));
    const input = el("input", { type: "range", id, min, max, step: 1, value });
    const say = () => {
        output.textContent = write(Number(input.value));
        input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
        say();
        change(Number(input.value));
    });
    say();
    const label = el("label", { class: "choice" }, el("span", {}, name), input, output);
    label.put = (x) => {
        input.value = x;
        say();
    };
    return label;
}

function choice(id, name, choices, value, change) {
    const label = selector(id, name, Object.entries(choices), value, change);
    label.put = (x) => {
        label.querySelector("select").value = x;
    };
    return label;
}

function button(id, text, press, attributes = {}) {
    return el("button", { type: "button", id, onclick: press, ...attributes }, text);
}

function updatesOf({ updates }) {
    return `${updates} ${updates === 1 ? "update" : "updates"}`;
}

// A share in percent, or as a power of ten where it is small.
function shareOf(x) {
    return x < 1e-3 ? number(x) : percent(x);
}

const KINDS = Object.fromEntries(Object.keys(CELLS).map((name) => [name, name]));

// What a screen reader hears: few, short sentences.
function announcer(id) {
    const node = el("p", { id, class: "visually-hidden", role: "status", "aria-live": "polite" });
    node.say = (text) => {
        node.textContent = text;
    };
    return node;
}
