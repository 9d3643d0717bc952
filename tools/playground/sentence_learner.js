// Two sentences that end with a name which was said before: a short way back, and a long one. The
// network reads all but the last word and has to say that. Each sentence has its own network, which
// is trained on that sentence with names drawn anew: the short one cannot teach the long one.

const WOMEN = ["Jane", "Mary", "Ruth", "Anna"];
const MEN = ["John", "Paul", "Mark", "Adam"];
const BEGINNING = "{woman} opened the door . {man} came in behind her .";
const MIDDLE =
    "Outside it had begun to rain , and the last people were hurrying home across the square " +
    "with their collars up .";
const END = "{woman} smiled at {man}";
const SENTENCES = {
    short: `${BEGINNING} ${END}`.split(" "),
    long: `${BEGINNING} ${MIDDLE} ${END}`.split(" "),
};
const VOCABULARY = [
    ...new Set([...WOMEN, ...MEN, ...SENTENCES.long.filter((w) => !w.startsWith("{"))]),
];
const WORD_UNITS = 20;
const WORD_RATE = 0.005;

function wordsOf(which, woman, man) {
    const names = { "{woman}": woman, "{man}": man };
    return SENTENCES[which].map((w) => names[w] || w);
}

// Read all words but the last, and say that one after them: tokens and targets, [T, B].
function reading(sentences) {
    const B = sentences.length;
    const T = sentences[0].length - 1;
    const tokens = new Int32Array(T * B);
    const targets = new Int32Array(T * B).fill(-1);
    sentences.forEach((words, b) => {
        for (let t = 0; t < T; t += 1) tokens[t * B + b] = VOCABULARY.indexOf(words[t]);
        targets[(T - 1) * B + b] = MEN.indexOf(words[T]);
    });
    return { T, B, tokens, targets };
}

class SentenceLearner {
    constructor({ which, cell, reach, weights, seed = 1 }) {
        Object.assign(this, { which, cell, reach, weights });
        this.net = network(cell, VOCABULARY.length, WORD_UNITS, MEN.length);
        start(this.net, weights, seed);
        this.adam = new Adam(this.net, WORD_RATE);
        this.random = new Random(seed + 100);
    }

    get updates() {
        return this.adam.updates;
    }

    update() {
        const one = () => wordsOf(this.which, this.draw(WOMEN), this.draw(MEN));
        const batch = reading(Array.from({ length: 16 }, one));
        const run = forward(this.net, batch.tokens, batch.T, batch.B);
        this.net.gradient.flat.fill(0);
        backward(this.net, run, batch.targets, this.reach);
        this.adam.update();
    }

    draw(names) {
        return names[this.random.integer(names.length)];
    }

    // Of Jane's and John's sentence: the probability of each man at the end, and how strongly the
    // last word's loss reaches the state after each word, ‖∂L/∂h_i‖, uncut.
    look() {
        const words = wordsOf(this.which, "Jane", "John");
        const { T, B, tokens, targets } = reading([words]);
        const run = forward(this.net, tokens, T, B);
        const norms = new Float64Array(T * T);
        backward(this.net, run, targets, T, norms);
        const p = probabilities(this.net, run, T - 1);
        const name = words.indexOf("John");
        return {
            words,
            norms: norms.subarray((T - 1) * T),
            men: [...p],
            name,
            back: T - 1 - name,
        };
    }
}
