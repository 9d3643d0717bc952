// What a page is put together from.

function part(id, title, notes, ...content) {
    const aside = el(
        "div",
        { class: "aside" },
        el("h2", { id: `${id}-title` }, title),
        el("div", { class: "how" }, ...notes.map((n) => el("p", {}, ...rich(n)))),
    );
    return el(
        "section",
        { class: "part", id: `part-${id}`, "aria-labelledby": `${id}-title` },
        aside,
        el("div", { class: "main" }, ...content),
    );
}

function selector(id, name, choices, value, change) {
    const options = choices.map(([key, text]) =>
        el("option", { value: key, selected: key === value }, text),
    );
    return el(
        "label",
        { class: "choice" },
        el("span", {}, name),
        el("select", { id, onchange: (e) => change(e.target.value) }, ...options),
    );
}

function themeButton() {
    const button = document.getElementById("theme");
    const name = () => {
        button.textContent = themeNow() === "dark" ? "Light" : "Dark";
        button.setAttribute("aria-label", `Switch to ${button.textContent.toLowerCase()} colours`);
    };
    button.addEventListener("click", () => {
        document.documentElement.dataset.theme = themeNow() === "dark" ? "light" : "dark";
        name();
        drawAll();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener(
        "change",
        () => (name(), drawAll()),
    );
    name();
}

// Draw again where the width has changed; on phones the height changes while one scrolls.
function drawsOnResize() {
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
        if (window.innerWidth === width) return;
        width = window.innerWidth;
        drawAll();
    });
}
