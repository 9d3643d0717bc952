// Of numbers, and of how many there is room for.

function greatest(values) {
    let most = -Infinity;
    for (const v of values) if (v > most) most = v;
    return most;
}

function mean(values) {
    return values.reduce((sum, v) => sum + v, 0) / values.length;
}

function clamp(x, low, high) {
    return Math.min(high, Math.max(low, x));
}

// Those of n labels that have room, and always the one that is pointed at, alone in its place.
function thinned(n, room, least, chosen) {
    const every = Math.max(1, Math.ceil((least * n) / room));
    const far = (k) =>
        chosen === null || chosen === k || Math.abs(k - chosen) * (room / n) >= least;
    const kept = [];
    for (let k = 0; k < n; k += 1) if (k === chosen || (k % every === 0 && far(k))) kept.push(k);
    return kept;
}
