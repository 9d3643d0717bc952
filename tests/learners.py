"""Backward passes as learners write them, each with one mistake that can be switched on."""

import numpy as np

MISTAKES = {
    "nothing back": ("UW", "nothing-from-next-step"),
    "no factor": ("UW", "factor-missing"),
    "no factor entry": ("UW", "factor-missing"),
    "no factor back": ("UW", "factor-missing"),
    "factor t-1": ("UW", "factor-of-step-before"),
    "factor t-1 back": ("UW", "factor-of-step-before"),
    "factor t+1": ("UW", "factor-of-step-after"),
    "1-h": ("UW", "factor-not-squared"),
    "sigmoid": ("UW", "factor-of-sigmoid"),
    "1-a2": ("UW", "factor-of-input"),
    "tanh twice": ("UW", "factor-tanh-twice"),
    "carried ds": ("UW", "carried-before-factor"),
    "W not transposed": ("UW", "weight-not-transposed"),
    "windows": ("UW", "windows"),
    "losses again": ("UW", "by-loss"),
    "no spare row": ("W", "no-spare-row"),
    "dW s[t]": ("W", "state-of-same-step"),
    "dW transposed": ("W", "transposed-result"),
    "dW =": ("W", "nothing"),
    "twice": ("W", "counted-twice"),
    "word once": ("U", "repeated-word-first"),
    "word added once": ("U", "repeated-word-last"),
    "dV s[t-1]": ("V", "state-of-step-before"),
    "only last loss": ("UWV", "no-losses"),
    "no target": ("UWV", "target-not-subtracted"),
    "inputs": ("UWV", "inputs-as-targets"),
    "scores": ("UWV", "softmax-forgotten"),
    "sign": ("UWV", "sign"),
    "b not summed": ("b", "not-summed"),
    "c not summed": ("c", "not-summed"),
}
"""By mistake: the parameters whose gradients it makes wrong, and the name that is to be found."""


def backward(x, y, U, W, V, b=0.0, c=0.0, mistake=None, k=None, dtype=np.float64):
    """The backward pass of the textbook's network, in one loop and an inner one."""
    x, y = list(x), list(y)
    U, W, V, b, c = (np.asarray(w, dtype) for w in (U, W, V, b, c))
    T, H = len(x), len(W)
    s = np.zeros((T if mistake == "no spare row" else T + 1, H), dtype)
    a, e = np.zeros((T, H), dtype), np.zeros((T, len(V)), dtype)
    for t in range(T):
        a[t] = U[:, x[t]] + W @ s[t - 1] + b
        s[t] = np.tanh(a[t])
        o = V @ s[t] + c
        e[t] = np.exp(o) / np.exp(o).sum()
        if mistake == "scores":
            e[t] = o
        if mistake != "no target":
            e[t, x[t] if mistake == "inputs" else y[t]] -= 1
    if mistake == "sign":
        e = -e

    def factor(t, where):
        if mistake in (f"no factor {where}", "no factor"):
            return np.ones(H, dtype)
        if mistake in (f"factor t-1 {where}", "factor t-1"):
            return 1 - s[t - 1] ** 2
        if mistake == "factor t+1":
            return 1 - s[t + 1] ** 2
        if mistake == "1-h":
            return 1 - s[t]
        if mistake == "sigmoid":
            return s[t] * (1 - s[t])
        if mistake == "1-a2":
            return 1 - a[t] ** 2
        if mistake == "tanh twice":
            return 1 - np.tanh(s[t]) ** 2
        return 1 - s[t] ** 2

    dU, dW, dV = np.zeros_like(U), np.zeros_like(W), np.zeros_like(V)
    db, dc = np.zeros(H, dtype), np.zeros(len(V), dtype)
    for t in reversed(range(T)):
        if mistake == "only last loss" and t < T - 1:
            continue
        dV += np.outer(e[t], s[t - 1] if mistake == "dV s[t-1]" else s[t])
        if mistake == "c not summed":
            dc = e[t]
        else:
            dc += e[t]
        ds = V.T @ e[t]
        for i in range(t, -1, -1):
            if k is not None and t - i > k:
                break
            if mistake == "losses again" and i < t:
                ds = ds + V.T @ e[i]
            delta = factor(i, "entry" if i == t else "back") * ds
            dW_i = np.outer(delta, s[i] if mistake == "dW s[t]" else s[i - 1])
            dW = dW_i if mistake == "dW =" else dW + dW_i
            others = {"word once": x[:i], "word added once": x[i + 1 :]}.get(mistake, ())
            if x[i] not in others:
                dU[:, x[i]] += delta
            db = delta if mistake == "b not summed" else db + delta
            ds = (W if mistake == "W not transposed" else W.T) @ (
                ds if mistake == "carried ds" else delta
            )
            if mistake == "nothing back" or (mistake == "windows" and i % 3 == 0):
                ds = 0 * ds
    if mistake == "dW transposed":
        dW = dW.T
    if mistake == "twice":
        dW = 2 * dW
    return [dU, dW, dV, db, dc]
