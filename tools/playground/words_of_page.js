// The page's longer texts.

const INTRO_WORDS = [
    "A recurrent network learns from its losses, and each loss is passed back through time. Truncated backpropagation stops after some steps. What lies further back is then never learnt. These networks are trained in your browser, while you watch.",
];
const COPY_WORDS = [
    "The network reads a letter, then digits, then “?”. At each digit it has to say that digit. At “?” it has to say the letter. Guessing the letter is right in 25 % of cases.",
    "Press Run. Both networks learn the digits at once, because a digit’s loss only needs its own step. Their total loss falls, and all seems well. Only one of them learns the letter.",
];
const CHART_WORDS =
    "Share of right answers on sequences that are never trained on. Red: the left network, green: the right one. Solid: the letter, dotted: the digits, dashed: guessing the letter.";
const SENTENCE_WORDS = [
    "Both sentences end with a name that was said before. In the short one it was said 8 steps ago, in the long one 30. The network has to say who it was. It learns from the same sentence with other names.",
    "With weights as torch.nn draws them, almost no gradient arrives after 30 steps: the gradient vanishes, and no reach of the credit helps. Choose weights made to remember, and the long way is learnt too. Now shorten the reach to 12.",
];
const SENTENCE_KEY =
    "Colour: how strongly the last word’s loss reaches the state after each word, ‖∂L/∂h_i‖, from 10⁻⁴ of the largest to all of it. Struck out: cut by the credit. Ringed: the name.";
const FOOT_WORDS =
    "24 units on the first task, 20 on the sentences; 16 sequences an update, Adam with a rate of 0.005, everything from fixed seeds. A reach of k is bptt.Truncated(every=1, reach=k): the loss of step t is credited to the k steps up to t. For an LSTM, h_i stands for its whole state, h and c. The gradients are tested against bptt’s.";
