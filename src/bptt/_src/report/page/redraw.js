// Whoever draws, and what has changed since. Each page has its own `view`, one object.

const drawers = [];
let waiting = null;

function draws(drawer) {
    drawers.push(drawer);
}

// Change the view; it is drawn once, before the screen is next.
function set(changes) {
    const changed = Object.keys(changes).filter((key) => view[key] !== changes[key]);
    if (!changed.length) return;
    Object.assign(view, changes);
    if (waiting) {
        changed.forEach((key) => waiting.add(key));
        return;
    }
    waiting = new Set(changed);
    requestAnimationFrame(redraw);
}

function redraw() {
    const changed = waiting || new Set();
    waiting = null;
    for (const drawer of drawers) drawer(changed);
}

function drawAll() {
    waiting = new Set(["everything"]);
    redraw();
}
