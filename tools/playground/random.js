// Random numbers that are the same on every machine: sfc32, seeded by one integer.
class Random {
    constructor(seed) {
        this.state = Uint32Array.of(seed, seed ^ 0x9e3779b9, 0x243f6a88, 1);
        for (let n = 0; n < 15; n += 1) this.integer(2); // mix the seed in
    }

    // Uniform in [0, 1), with 32 bits.
    uniform() {
        const s = this.state;
        const sum = (s[0] + s[1] + s[3]) >>> 0;
        s[3] += 1;
        s[0] = s[1] ^ (s[1] >>> 9);
        s[1] = s[2] + (s[2] << 3);
        s[2] = ((s[2] << 21) | (s[2] >>> 11)) + sum;
        return sum / 4294967296;
    }

    // One of 0 … n - 1.
    integer(n) {
        return Math.floor(n * this.uniform());
    }

    normal() {
        const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
        return radius * Math.cos(2 * Math.PI * this.uniform());
    }
}
