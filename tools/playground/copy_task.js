// The copy task: a letter, then digits, then "?". At each digit the answer is the digit itself, at
// "?" it is the letter, `lag` steps back.

const LETTERS = "ABCD";
const DIGITS = "0123456789";
const TOKENS = [...LETTERS, ...DIGITS, "?"];
const ASKED = TOKENS.length - 1;
const ANSWERS = ASKED; // everything but the "?"

function copies(lag, B, random) {
    const T = lag + 1;
    const tokens = new Int32Array(T * B);
    const targets = new Int32Array(T * B);
    for (let b = 0; b < B; b += 1) {
        const letter = random.integer(LETTERS.length);
        for (let t = 0; t < T; t += 1) {
            const digit = LETTERS.length + random.integer(DIGITS.length);
            tokens[t * B + b] = t === 0 ? letter : t < lag ? digit : ASKED;
            targets[t * B + b] = t === 0 || t === lag ? letter : digit;
        }
    }
    return { T, B, tokens, targets };
}
