// Training in slices between two frames, so that the page stays responsive.

const SPEEDS = [
    { name: "2 a second", wait: 500 },
    { name: "10 a second", wait: 100 },
    { name: "60 a second", wait: 16 },
    { name: "fastest", wait: 0 },
];
const SLICE = 24; // milliseconds of training in a frame
const LOOK = { moving: 160, still: 1000 }; // milliseconds between two looks at the networks

// Runs `update` at a speed, calls `show` now and then, and `changed` when it
// begins or pauses.
class Clockwork {
    constructor(update, show, changed) {
        Object.assign(this, { update, show, changed, running: false, speed: 2 });
        this.looked = 0;
        this.last = 0;
    }

    run() {
        if (this.running) return;
        this.running = true;
        this.changed();
        requestAnimationFrame((now) => this.frame(now));
    }

    pause() {
        if (!this.running) return;
        this.running = false;
        this.changed();
        this.show();
    }

    frame(now) {
        if (!this.running) return;
        const { wait } = SPEEDS[this.speed];
        const start = performance.now();
        if (now - this.last >= wait) {
            this.last = now;
            do {
                this.update();
            } while (wait === 0 && performance.now() - start < SLICE);
        }
        const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
        if (now - this.looked >= (still ? LOOK.still : LOOK.moving)) {
            this.looked = now;
            this.show();
        }
        requestAnimationFrame((next) => this.frame(next));
    }
}
