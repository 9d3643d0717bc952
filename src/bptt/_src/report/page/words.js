// Text and numbers as they are shown. Text is always a text node, never markup.

const NAMED = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽" };

// A token in pieces: what is seen as it is, and signs for what would not be seen.
function pieces(token) {
    if (token === "") return [{ text: "∅", sign: true }];
    const found = [];
    for (const c of token) {
        const sign = signFor(c);
        const last = found.at(-1);
        if (sign === null && last && !last.sign) last.text += c;
        else found.push(sign === null ? { text: c, sign: false } : { text: sign, sign: true });
    }
    // A mark that combines needs something to stand on, which is not a letter of the word before.
    if (!found[0].sign && /^\p{M}/u.test(found[0].text)) found[0].text = `\u25cc${found[0].text}`;
    return found;
}

function signFor(c) {
    if (c in NAMED) return NAMED[c];
    const code = c.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "␡";
    const unseen = /^[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zs}\p{Zl}\p{Zp}]$/u.test(c);
    // Joiners hold emoji and some scripts together.
    if (!unseen || c === "\u200d" || c === "\u200c") return null;
    return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

function shown(token) {
    return pieces(token)
        .map((p) => p.text)
        .join("");
}

// The word in its own direction, so that it does not turn what stands around it.
function word(token) {
    const parts = pieces(token).map((p) => (p.sign ? el("i", { class: "sign" }, p.text) : p.text));
    return el("bdi", {}, ...parts);
}

function cut(text, most) {
    const signs = [...text];
    return signs.length > most ? `${signs.slice(0, most - 1).join("")}…` : text;
}

const RAISED = {
    "-": "⁻",
    0: "⁰",
    1: "¹",
    2: "²",
    3: "³",
    4: "⁴",
    5: "⁵",
    6: "⁶",
    7: "⁷",
    8: "⁸",
    9: "⁹",
};

function power(exponent) {
    return `10${[...String(exponent)].map((c) => RAISED[c]).join("")}`;
}

// Three significant digits.
function number(x) {
    if (x === null || x === undefined || Number.isNaN(x)) return "–";
    if (x === 0) return "0";
    const size = Math.abs(x);
    const sign = x < 0 ? "−" : "";
    if (Number.isInteger(x) && size < 1e5) return sign + size;
    if (size >= 1e-3 && size < 1e5)
        return sign + size.toFixed(clamp(2 - Math.floor(Math.log10(size)), 0, 5));
    const [digits, exponent] = size.toExponential(1).split("e");
    return `${sign}${digits}\u00a0·\u00a0${power(Number(exponent))}`; // stays together
}

function percent(share) {
    const x = 100 * share;
    if (x === 0) return "0 %";
    if (x < 0.1) return "< 0.1 %";
    return `${x < 10 ? x.toFixed(1) : x.toFixed(0)} %`;
}

// The page's own words, in which _x and _{x} are set below the line.
function rich(text) {
    const parts = text.split(/_(\w|\{[^}]*\})/u);
    return parts.map((p, n) => (n % 2 ? el("sub", {}, p.replace(/[{}]/g, "")) : p));
}

// An element; null children are left out.
function el(tag, attributes = {}, ...children) {
    return furnish(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
    return furnish(
        document.createElementNS("http://www.w3.org/2000/svg", tag),
        attributes,
        children,
    );
}

function furnish(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (value !== null && value !== false)
            element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((c) => c !== null && c !== undefined));
    return element;
}
