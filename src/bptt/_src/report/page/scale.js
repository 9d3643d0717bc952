// Colours. In OKLCH lightness is what the eye calls it, so equal steps look equal, and a scale that
// only gets darker (on a dark page: lighter) can be read by every eye, and in print.

// From lightness, chroma and hue to sRGB, 0 to 255; chroma is lowered until a screen can show it.
function oklch(lightness, chroma, hue) {
    let rgb = [];
    for (let c = chroma; ; c -= 0.004) {
        rgb = linear(lightness, Math.max(0, c), (hue * Math.PI) / 180);
        if (c <= 0 || rgb.every((v) => v >= -1e-4 && v <= 1.0001)) break;
    }
    return rgb.map((v) => Math.round(255 * gamma(clamp(v, 0, 1))));
}

// Björn Ottosson's matrices, https://bottosson.github.io/posts/oklab/
function linear(lightness, chroma, angle) {
    const a = chroma * Math.cos(angle);
    const b = chroma * Math.sin(angle);
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ];
}

function gamma(v) {
    return v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055;
}

// Of x from 0 (the page itself) to 1. Each theme has its own end, as far from the page as can be.
const SCALES = {
    light: {
        size: (x) =>
            oklch(
                0.985 - 0.7 * x,
                0.006 + 0.125 * Math.sin(Math.PI * x ** 1.25) + 0.06 * x,
                175 + 108 * x,
            ),
        lowers: (x) => oklch(0.985 - 0.6 * x, 0.11 * Math.sqrt(x), 200),
        raises: (x) => oklch(0.985 - 0.6 * x, 0.13 * Math.sqrt(x), 58),
    },
    dark: {
        size: (x) =>
            oklch(
                0.215 + 0.735 * x,
                0.012 + 0.125 * Math.sin(Math.PI * (0.06 + 0.74 * x)),
                278 - 160 * x,
            ),
        lowers: (x) => oklch(0.215 + 0.665 * x, 0.12 * Math.sqrt(x), 200),
        raises: (x) => oklch(0.215 + 0.665 * x, 0.13 * Math.sqrt(x), 62),
    },
};

const STEPS = 256;
const tables = {};

function table(theme, kind) {
    const key = `${theme} ${kind}`;
    tables[key] ||= Array.from({ length: STEPS }, (_, n) => SCALES[theme][kind](n / (STEPS - 1)));
    return tables[key];
}

// The colour of an entry, as three numbers; null where there is nothing to show.
function colour(measure, row, column, view) {
    const x = strength(measure, row, column, view);
    if (x === null) return null;
    const kind = measure.signed ? (measure.sign(row, column) > 0 ? "raises" : "lowers") : "size";
    return table(themeNow(), kind)[Math.round(x * (STEPS - 1))];
}

// Where an entry lies between the scale's ends, which are `decades` apart.
function strength(measure, row, column, view) {
    const log = measure.log(row, column);
    if (Number.isNaN(log)) return null;
    const top = view.scale === "loss" ? measure.tops[row] : measure.top;
    if (!Number.isFinite(top)) return 0;
    return clamp(1 + (log - top) / view.decades, 0, 1);
}

function css(rgb) {
    return `rgb(${rgb.join(" ")})`;
}

// Whether black is read better upon it than white, by the contrast of WCAG.
function isLight(rgb) {
    const [r, g, b] = rgb.map((v) => {
        const x = v / 255;
        return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179;
}

function themeNow() {
    const chosen = document.documentElement.dataset.theme;
    if (chosen) return chosen;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}
