"""Gradient flows made up for the tests of the figure and of the page, in the form of to_dict()."""

import numpy as np

TEXT = """
Anna came in . Ben came in too . Ben said hello to Anna .
Anna came in . Ben came in too . It was late , and both went home after a long day at work .
In the morning , Ben said hello to Anna .
"""
SENTENCES = TEXT.split()


def made_flow(
    name="tanh",
    *,
    beta=0.8,
    words=SENTENCES,
    layers=1,
    cells=False,
    lags=None,
    times=None,
    attribution=True,
    bound=1.3,
    kind="vanishing",
    seed=0,
):
    """A flow whose norms fall by about ``beta`` a lag; ``words`` are the text, one more than T."""
    random = np.random.default_rng(seed)
    T = len(words) - 1
    times = list(range(T)) if times is None else list(times)
    K = T if lags is None else lags
    lag = np.array(times)[:, None] - np.arange(T)
    followed = (lag >= 0) & (lag < K)
    per_step = np.concatenate([[0], np.cumsum(0.5 * random.standard_normal(T - 1))]) * 0.3
    logs = np.log(beta) * lag + per_step[times][:, None] - per_step
    states = []
    for layer in range(layers):
        norms = np.exp(logs - 0.3 * layer + 0.1 * random.standard_normal(lag.shape))
        states.append({"layer": layer, "name": "hidden", "norms": rows(norms, followed)})
        if cells:
            slow = np.exp(0.4 * logs - 0.5 + 0.1 * random.standard_normal(lag.shape))
            states.append(
                {"layer": layer, "name": "cell", "norms": rows(slow, followed & (lag > 0))}
            )
    signed = np.exp(logs) * random.standard_normal(lag.shape) * 0.3
    hidden = np.exp(logs)
    by_lag = [hidden[(lag == k) & followed] for k in range(K)]
    kept = [(k, v) for k, v in enumerate(by_lag) if len(v)]
    mean = [float(v.mean()) for _, v in kept]
    sums = np.cumsum(mean) / np.sum(mean)
    return {
        "format": "bptt.flow",
        "version": 2,
        "name": name,
        "module": f"RNN({T}, nonlinearity='{name}')",
        "steps": T,
        "times": times,
        "batch": 1,
        "lags": K,
        "tokens": list(words[:-1]),
        "targets": list(words[1:]),
        "losses": [float(x) for x in 3 + random.standard_normal(len(times)) * 0.5],
        "states": states,
        "attribution": rows(signed, followed) if attribution else None,
        "by_lag": {
            "lag": [k for k, _ in kept],
            "mean": mean,
            "low": [float(np.quantile(v, 0.1)) for _, v in kept],
            "high": [float(np.quantile(v, 0.9)) for _, v in kept],
        },
        "decay": {"beta": beta, "error": 0.004, "first": 1, "last": max(1, K // 2)},
        "horizon": {
            "threshold": 0.01,
            "lag": int(np.argmax(sums >= 0.99)),
            "reached": True,
        },
        "suggested_reach": {
            "bias": 0.1,
            "reach": int(np.argmax(sums >= 0.9)) + 1,
            "every": int(np.argmax(sums >= 0.9)) + 1,
            "measured": 0.08,
            "why": None,
        },
        "dynamics": [
            {
                "layer": layer,
                "jacobian_norms": [float(x) for x in beta + 0.1 * random.random(T)],
                "bound": bound,
                "weight_norm": 1.3,
                "slope": 1.0,
                "spectral_radius": 0.58,
                "largest_singular_value": 1.3,
                "saturated": 0.031,
                "dead": 0.0,
                "lyapunov": [-0.23, -0.31, -0.47],
            }
            for layer in range(layers)
        ],
        "verdict": {
            "kind": kind,
            "words": f"The gradient is {kind}: it is multiplied by about {beta:g} at every step.",
        },
        "advice": [
            {
                "text": "Make the recurrent weights orthogonal: bptt.init.orthogonal_(module).",
                "figures": {"beta": beta, "spectral_radius": 0.58},
                "source": "Saxe, McClelland and Ganguli 2014",
            }
        ],
    }


def five_flows(**options):
    """The five kinds of network on the same text."""
    return [
        made_flow("tanh", beta=0.72, seed=1, **options),
        made_flow("sigmoid", beta=0.17, bound=0.32, seed=2, **options),
        made_flow("relu", beta=1.05, kind="exploding", seed=3, **options),
        made_flow("gru", beta=0.86, bound=None, seed=4, **options),
        made_flow("lstm", beta=0.8, cells=True, bound=None, kind="healthy", seed=5, **options),
    ]


def rows(values, defined):
    """Lists of five significant digits, None where nothing is defined."""
    return [
        [float(f"{v:.5g}") if d else None for v, d in zip(row, there, strict=True)]
        for row, there in zip(values.tolist(), defined.tolist(), strict=True)
    ]
