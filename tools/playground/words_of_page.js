// The page's longer texts; _x is set below the line.

const INTRO_WORDS = [
    "A recurrent network learns from its losses, and each loss is passed back through time. " +
        "Truncated backpropagation stops after some steps: what lies further back gets no credit." +
        " These networks are trained in your browser, while you watch.",
];
const COPY_WORDS = [
    "The network reads a letter, then digits, then “?”. At each digit it has to say that " +
        "digit. At “?” it has to say the letter. Guessing the letter is right in 25 % of cases.",
    "Press Run. Both networks soon learn the digits, because a digit’s loss only needs its " +
        "own step. Their total loss falls, and all seems well. Only one of them learns the " +
        "letter.",
    "Each row of a triangle is the loss of a step, each column the state after a step. Under " +
        "it you see what is remembered: how often a linear readout of that state tells the " +
        "letter.",
    "Two more examples. A reach that is too short can succeed if the state keeps the letter " +
        "by itself until the credit begins. A reach that is long enough can fail if the gradient " +
        "vanishes on the way.",
];
const CHART_WORDS =
    "Share of right answers on new sequences, kept out of training. Red: the first network, " +
    "green: the second. Solid: the letter, dotted: the digits, dashed: guessing the " +
    "letter.";
const SENTENCE_WORDS = [
    "Both sentences end with a name that was said before. In the short one it was said 8 " +
        "steps earlier, in the long one 30. A network for each has to say who it was. It is " +
        "trained on its sentence with other names too.",
    "With weights drawn as torch.nn draws them, almost no gradient is left after 30 steps: it" +
        " vanishes, and no reach helps. Choose weights made to remember, and the long sentence is" +
        " learnt too. Then reset, and shorten the reach to 12.",
];
const SENTENCE_KEY =
    "Colour: how strongly the last word’s loss reaches the state after each word, ‖∂L/∂h_i‖, " +
    "from 10⁻⁴ of the largest to all of it. Struck out: cut by the credit. Ringed: the name.";
const FOOT_WORDS = [
    "A reach of k is bptt.Truncated(every=1, reach=k): the loss of step t is credited to " +
        "steps t - k + 1 to t. The colours show the whole gradient, also what is cut. For an " +
        "LSTM, h_i stands for h and c together.",
    "24 units for the letter, 20 for the sentences; 16 sequences an update; Adam with a rate " +
        "of 0.005 and ε = 10⁻⁵; the gradient’s norm clipped at 1. Weights made to remember: an " +
        "orthogonal " +
        "recurrent matrix (RNN, and the GRU’s new gate), a bias of 1 in the GRU’s reset gate, of " +
        "2 in the LSTM’s forget gate. All numbers come from fixed seeds, so everyone sees the " +
        "same.",
];
