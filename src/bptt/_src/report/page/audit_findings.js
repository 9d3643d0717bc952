// The findings in words, faults first, each with a link to its place in the matrices.

function findings() {
    const items = REPORT.findings.map(findingItem);
    if (!REPORT.findings.some((f) => f.is_fault))
        items.unshift(el("li", { class: "finding none" }, el("p", { class: "seen" }, "No faults.")));
    return el("ol", { id: "findings" }, ...items);
}

function findingItem(f) {
    const said = [f.means, f.instead].filter(Boolean).map((text) => el("p", {}, text));
    return el(
        "li",
        { class: `finding ${f.is_fault ? "fault" : "fact"}`, "data-kind": f.kind },
        el(
            "p",
            { class: "kind" },
            el("b", {}, f.is_fault ? "Fault" : "Fact"),
            " ",
            el("code", {}, f.kind),
        ),
        el("p", { class: "seen" }, f.seen),
        ...said,
        f.t === null ? null : el("p", {}, placeLink(f)),
    );
}

function placeLink(f) {
    const where = [`Show step t = ${f.t}`];
    if (f.s !== null) where.push(`s = ${f.s}`);
    if (f.sequence !== null && REPORT.sequences.length > 1) where.push(`sequence ${f.sequence}`);
    return el("a", { href: addressOf(f), onclick: goThere }, where.join(", "));
}

// Follow a link again even where the address is its own already.
function goThere(event) {
    if (event.currentTarget.hash !== location.hash) return;
    event.preventDefault();
    toAddress();
}

function toAddress() {
    const changes = fromAddress();
    if (!("t" in changes)) return;
    set(changes);
    const name = new URLSearchParams(location.hash.slice(1)).get("in");
    const map = MAPS.find((m) => m.weights.name === name) ?? MAPS[0];
    map.frame.focus({ preventScroll: true });
    document.getElementById("maps").scrollIntoView({ block: "nearest" });
}
