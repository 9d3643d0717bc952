"""What GradientFlow says of the pairs: by lag, decay, horizon, and as a document."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bptt
from bptt._src.flow.lags import by_lag, find_horizon, fit_decay
from bptt._src.flow.pairs import Pairs
from bptt.flow import ByLag, GradientFlow, StateFlow, gradient_flow

DOUBLE = torch.float64


def flow_with(norms: Tensor, *, times=None, lags=None, **more) -> GradientFlow:
    """A flow with these norms [B, N, T] of one hidden state."""
    B, N, T = norms.shape
    options = {
        "name": "made",
        "module": "made by hand",
        "times": tuple(range(T) if times is None else times),
        "steps": T,
        "batch": B,
        "lags": lags or T,
        "states": (StateFlow(0, "hidden", norms),),
        "losses": torch.ones(N, B, dtype=DOUBLE),
    }
    return GradientFlow(**{**options, **more})


def of_lags(values, *, count=None) -> ByLag:
    mean = np.array(values, float)
    many = np.full(len(mean), 5) if count is None else np.array(count)
    return ByLag(np.arange(len(mean)), mean, mean, mean, many)


def toeplitz(values, batch: int = 1) -> Tensor:
    """Norms [B, T, T] that depend on the lag alone."""
    T = len(values)
    norms = torch.zeros(batch, T, T, dtype=DOUBLE)
    for t in range(T):
        for s in range(t + 1):
            norms[:, t, s] = values[t - s]
    return norms


# -------------------------------------------------------------------------------------- by lag


def test_by_lag_sorts_what_it_is_given():
    norms = np.full((2, 2, 4), np.nan)
    norms[:, 0, :2] = [[10, 20], [30, 40]]  # t = 1
    norms[:, 1, 1:] = [[1, 2, 3], [5, 6, 7]]  # t = 3, three lags
    found = by_lag(norms, np.array([1, 3]), 3)
    assert found.lag.tolist() == [0, 1, 2]
    assert found.mean.tolist() == [(20 + 40 + 3 + 7) / 4, (10 + 30 + 2 + 6) / 4, (1 + 5) / 2]
    assert found.count.tolist() == [4, 4, 2]
    assert found.low.tolist() == [3, 2, 1]
    assert found.high.tolist() == [40, 30, 5]


def test_the_spread_is_that_of_losses_and_sequences():
    random = torch.Generator().manual_seed(1)
    norms = torch.rand(40, 30, 30, generator=random, dtype=DOUBLE)
    found = flow_with(norms).by_lag
    values = norms.diagonal(dim1=1, dim2=2, offset=-3).flatten().sort().values
    assert found.count[3] == len(values) == 40 * 27
    assert found.low[3] == pytest.approx(float(values[len(values) // 10]), abs=0.01)
    assert found.high[3] == pytest.approx(float(values[9 * len(values) // 10]), abs=0.01)
    assert found.mean[3] == pytest.approx(float(values.mean()))


def test_what_is_not_defined_is_left_out_and_infinity_stays():
    norms = toeplitz([1.0, 0.5, 0.25, 0.125], batch=2)
    norms[0].diagonal().fill_(math.nan)
    norms[:, 3, 0] = math.inf
    found = flow_with(norms).by_lag
    assert found.count.tolist() == [4, 6, 4, 2]
    assert found.mean.tolist() == [1, 0.5, 0.25, math.inf]
    assert found.high[3] == math.inf
    norms.diagonal(dim1=1, dim2=2).fill_(math.nan)
    assert math.isnan(flow_with(norms).by_lag.mean[0])


# --------------------------------------------------------------------------------------- decay


def test_the_decay_does_not_rise_where_later_losses_are_the_larger_ones():
    norms = toeplitz(0.8 ** np.arange(20.0)) * (100.0 ** torch.arange(20)).view(1, 20, 1)
    flow = flow_with(norms)
    assert fit_decay(replace(flow.by_lag, ratio=None)).beta > 0.95
    assert flow.decay.beta == pytest.approx(0.8, rel=1e-9)
    assert flow.decay.error < 1e-9


@pytest.mark.parametrize("beta", [0.3, 0.9, 1.0, 1.2])
def test_the_decay_of_powers_is_their_base(beta):
    fit = fit_decay(of_lags(beta ** np.arange(20.0)))
    assert fit.beta == pytest.approx(beta, rel=1e-10)
    assert fit.error < 1e-10
    assert (fit.first, fit.last) == (10, 19)


def test_it_is_the_tail_that_counts():
    mean = np.where(np.arange(30) < 10, 1.0, 0.5 ** (np.arange(30.0) - 9))
    assert fit_decay(of_lags(mean)).beta == pytest.approx(0.5, rel=1e-10)


def test_rounding_and_what_is_not_finite_are_not_fitted():
    powers = 1.1e-3 ** np.arange(20.0)
    fit = fit_decay(of_lags(powers))
    assert fit.last == 10  # 2.6e-30
    assert fit.beta == pytest.approx(1.1e-3, rel=1e-6)
    exploding = 2.0 ** np.arange(12.0)
    exploding[9:] = math.inf
    assert fit_decay(of_lags(exploding)).last == 8
    assert fit_decay(of_lags(exploding)).beta == pytest.approx(2)
    assert fit_decay(of_lags([1, 1, 0, 0, 0])) is None
    assert fit_decay(of_lags([1, 0.5, 0.2])) is None
    assert fit_decay(of_lags([math.nan, 0.5, 0.25, 0.125])).beta == pytest.approx(0.5)


def test_the_error_is_that_of_least_squares():
    """Against the formula of the textbooks, for weights that count the values."""
    random = np.random.default_rng(3)
    count = np.arange(24, 0, -1)
    mean = np.exp(-0.2 * np.arange(24.0) + 0.1 * random.standard_normal(24))
    fit = fit_decay(of_lags(mean, count=count))
    k = np.arange(fit.first, fit.last + 1)
    X = np.stack([np.ones(len(k)), k], 1)
    W = np.diag(count[k] / 1.0)
    inverse = np.linalg.inv(X.T @ W @ X)
    solution = inverse @ X.T @ W @ np.log(mean[k])
    residual = np.log(mean[k]) - X @ solution
    variance = (residual @ W @ residual) / (len(k) - 2) * inverse[1, 1]
    assert fit.beta == pytest.approx(np.exp(solution[1]), rel=1e-10)
    assert fit.error == pytest.approx(fit.beta * math.sqrt(variance), rel=1e-8)


def test_the_error_covers_the_truth_about_as_often_as_it_should():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        mean = np.exp(-0.1 * np.arange(40.0) + 0.2 * random.standard_normal(40))
        fit = fit_decay(of_lags(mean))
        inside += abs(fit.beta - math.exp(-0.1)) < 2 * fit.error
    assert 0.9 < inside / 400 < 0.98


def test_of_a_linear_network_the_decay_is_the_spectral_radius():
    W = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    W = W + W.t()  # of real eigenvalues, so that nothing rotates
    W = 0.8 * W / torch.linalg.eigvalsh(W).abs().max()

    class Linear(nn.Module):
        def forward(self, x, h):
            return (h @ W.t() + x,) * 2

    x, h = torch.randn(80, 3, 4, dtype=DOUBLE), torch.zeros(3, 4, dtype=DOUBLE)
    flow = gradient_flow(bptt.Stepwise(Linear()), x, state=h, times=[79], dynamics=False)
    assert flow.decay.beta == pytest.approx(0.8, rel=1e-6)
    # Of many losses each lag has others, whose directions are not the same.
    flow = gradient_flow(bptt.Stepwise(Linear()), x, state=h, dynamics=False)
    assert flow.decay.beta == pytest.approx(0.8, rel=1e-6)
    assert flow.decay.error < 1e-6


# ------------------------------------------------------------------------------------- horizon


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("threshold", [0.3, 0.1, 0.01])
def test_the_horizon_of_powers(beta, threshold):
    """Σ_{k≤K} β^k = (1 - β^(K+1)) / (1 - β), so K + 1 ≥ log θ / log β."""
    flow = flow_with(toeplitz(list(beta ** np.arange(120.0))))
    expected = math.ceil(math.log(threshold) / math.log(beta) - 1e-3) - 1
    assert flow.horizon(threshold) == expected
    assert flow.settles(threshold)


def test_the_horizon_is_the_least_lag_that_is_enough():
    means = [4, 3, 2, 1]
    for threshold, lag in [(0.05, 3), (0.1, 2), (0.3, 1), (0.29, 2), (0.61, 0), (0.59, 1)]:
        assert find_horizon(of_lags(means), None, threshold).lag == lag, threshold


def test_a_horizon_beyond_the_lags_is_not_settled():
    slow = list(0.99 ** np.arange(50.0))
    assert not flow_with(toeplitz(slow)).settles()
    assert flow_with(toeplitz(slow)).settles(0.9)
    assert flow_with(toeplitz(slow)).horizon() > 45
    quick = list(0.5 ** np.arange(50.0))
    assert flow_with(toeplitz(quick)).settles()
    assert not flow_with(toeplitz(quick[:5])).settles()
    assert not flow_with(toeplitz(list(1.1 ** np.arange(50.0)))).settles()
    assert not flow_with(toeplitz([1.0, 0.5])).settles()  # too few to fit anything
    # What has died does not go on, however few lags there are to fit.
    assert flow_with(toeplitz([1.0, 0.0, 0.0, 0.0])).settles()
    assert flow_with(toeplitz([1.0, 0.0, 0.0, 0.0])).horizon() == 0


def test_no_horizon_of_what_is_not_finite_or_nothing():
    assert flow_with(toeplitz([1.0, math.inf, 1.0])).horizon() is None
    assert flow_with(toeplitz([0.0, 0.0, 0.0])).horizon() is None
    assert not flow_with(toeplitz([0.0, 0.0, 0.0])).settles()
    # Where lag 0 is not defined, the others are what there is.
    norms = toeplitz([math.nan, 0.5, 0.25, 0.125])
    assert flow_with(norms).horizon(0.2) == 2
    for threshold in (0, 1, -0.1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            flow_with(norms).horizon(threshold)


# ---------------------------------------------------------------------------------- picking one


def test_picking_states():
    random = torch.Generator().manual_seed(1)
    parts = {
        (layer, name): torch.rand(3, 5, 5, generator=random, dtype=DOUBLE).tril()
        for layer in (0, 1)
        for name in ("hidden", "cell")
    }
    states = tuple(StateFlow(layer, name, norms) for (layer, name), norms in parts.items())
    flow = flow_with(parts[0, "hidden"], states=states)
    both = (parts[0, "hidden"] ** 2 + parts[1, "hidden"] ** 2).sqrt()
    torch.testing.assert_close(flow.of(name="hidden"), both.mean(0))
    all_of_it = sum(p**2 for p in parts.values()).sqrt()
    torch.testing.assert_close(flow.norms, all_of_it.mean(0))
    torch.testing.assert_close(flow.of(sequence=2), all_of_it[2])
    torch.testing.assert_close(flow.of(sequence=-1), all_of_it[2])
    top = (parts[1, "hidden"] ** 2 + parts[1, "cell"] ** 2).sqrt()
    torch.testing.assert_close(flow.of(layer=1), top.mean(0))
    torch.testing.assert_close(flow.of(layer=0, name="cell", sequence=1), parts[0, "cell"][1])
    lag_one = all_of_it.diagonal(dim1=1, dim2=2, offset=-1)
    assert flow.by_lag.mean[1] == pytest.approx(float(lag_one.mean()))
    with pytest.raises(ValueError, match="there are: hidden of layer 0, cell of layer 0"):
        flow.of(name="slow")
    with pytest.raises(ValueError, match="no state"):
        flow.of(layer=2)
    with pytest.raises(ValueError, match="3 sequences, got sequence=3"):
        flow.of(sequence=3)


def test_of_a_state_of_another_kind_all_of_it_is_meant():
    a, b = toeplitz([math.nan, 3.0, 3.0]), toeplitz([math.nan, 4.0, 4.0])
    flow = flow_with(a, states=(StateFlow(0, "fast", a), StateFlow(0, "more.0", b)))
    assert flow.norms[2, 0] == 5
    assert flow.of(name="fast")[2, 0] == 3
    assert flow.norms.diagonal().isnan().all()


def test_a_cell_counts_beside_the_hidden_state():
    """A memory that goes through the cell alone is seen by lag, and in the horizon."""
    hidden, cell = toeplitz([3.0, 4.0, 0.0, 0.0]), toeplitz([math.nan, 3.0, 5.0, 5.0])
    flow = flow_with(hidden, states=(StateFlow(0, "hidden", hidden), StateFlow(0, "cell", cell)))
    assert flow.by_lag.mean.tolist() == [3, 5, 5, 5]
    assert flow.by_lag.count.tolist() == [4, 3, 2, 1]
    assert flow.horizon() == 3
    assert flow_with(hidden).horizon() == 1
    cell[0, 3, 1] = math.nan  # of numbers that were not finite: it is not taken for nothing
    broken = flow_with(hidden, states=(StateFlow(0, "hidden", hidden), StateFlow(0, "cell", cell)))
    assert broken.norms[3, 1].isnan()


# ------------------------------------------------------------------------------------ documents


@pytest.fixture(scope="module")
def lstm_flow() -> GradientFlow:
    torch.manual_seed(0)
    return gradient_flow(
        bptt.LSTM(3, 8, 2),
        torch.randn(12, 2, 3),
        times=[2, 5, 11],
        lags=6,
        tokens=[f"<{t}>" for t in range(12)],
        targets=["é\u2028"] * 12,
    )


def test_the_document_is_plain_json_with_all_of_it(lstm_flow):
    document = json.loads(json.dumps(lstm_flow.to_dict(), allow_nan=False))
    assert document["format"] == "bptt.flow"
    assert document["version"] == 2
    assert document["name"] == "2 × LSTM 8"
    assert document["module"] == "LSTM(3, 8, num_layers=2)"
    assert (document["steps"], document["times"], document["batch"]) == (12, [2, 5, 11], 2)
    assert document["lags"] == 6
    assert document["tokens"][3] == "<3>"
    assert document["targets"][0] == "é\u2028"
    names = [(s["layer"], s["name"]) for s in document["states"]]
    assert names == [(0, "hidden"), (0, "cell"), (1, "hidden"), (1, "cell")]
    for state, own in zip(document["states"], lstm_flow.states, strict=True):
        for row, t, norms in zip(state["norms"], (2, 5, 11), own.norms.mean(0), strict=True):
            for s, value in enumerate(row):
                known = t - 6 < s <= t and not (state["name"] == "cell" and s == t)
                assert (value is not None) == known, (state["name"], t, s)
                if known:
                    assert value == pytest.approx(float(norms[s]), rel=1e-4)
                    assert len(f"{value:e}".partition("e")[0].rstrip("0").rstrip(".")) <= 6
    for row, t in zip(document["attribution"], (2, 5, 11), strict=True):
        assert [v is not None for v in row] == [t - 6 < s <= t for s in range(12)]
    assert document["losses"] == pytest.approx(lstm_flow.losses.mean(1).tolist(), rel=1e-4)
    lags = document["by_lag"]
    assert lags["lag"] == list(range(6))
    assert lags["mean"] == pytest.approx(lstm_flow.by_lag.mean.tolist(), rel=1e-4)
    assert set(lags) == {"lag", "mean", "low", "high"}
    assert document["decay"].keys() == {"beta", "error", "first", "last"}
    assert document["horizon"] == {
        "threshold": 0.01,
        "lag": lstm_flow.horizon(),
        "reached": lstm_flow.settles(),
    }
    K, measured = lstm_flow.suggest_truncation(0.1), lstm_flow.suggestion(0.1).measured
    assert document["suggested_reach"] == {
        "bias": 0.1,
        "reach": K,
        "every": K,
        "measured": pytest.approx(measured, rel=1e-4),
        "why": None,
    }


def test_what_it_says_of_itself():
    quick, slow = toeplitz(list(0.5 ** np.arange(50.0))), toeplitz([1.0, math.inf], batch=2)
    assert repr(flow_with(quick)) == (
        "GradientFlow('made': 50 losses, 50 lags, 1 sequence; horizon 6, decay 0.5 a step)"
    )
    assert repr(flow_with(slow)).endswith("2 lags, 2 sequences; horizon none)")
    assert "1 loss, 1 lag, 1 sequence;" in repr(flow_with(quick[:, :1, :1]))
    assert flow_with(quick[:, :1, :1]).suggest_truncation() is None
    assert "horizon ≥ 4" in repr(flow_with(quick[:, :5, :5]))


def test_printed_it_is_the_report(lstm_flow):
    head, row, blank, *rest = str(lstm_flow).splitlines()
    assert head.split()[:3] == ["steps", "loss", "horizon"]
    assert row.startswith(lstm_flow.name)
    assert row.endswith(lstm_flow.verdict.kind)
    assert f"(bias {lstm_flow.suggestion().measured:.2f})" in row
    assert not blank
    said = " ".join(" ".join(rest).split())
    assert said.startswith(f"{lstm_flow.name}: {lstm_flow.verdict.words}")
    assert len(lstm_flow.advice) > 0
    for a in lstm_flow.advice:
        assert f"- {a.text} [{a.source}]" in said
    assert max(map(len, rest)) <= 100
    two = str(flow_with(toeplitz([1.0, 0.5]), name="two\nlines\x1b")).splitlines()
    assert two[1].startswith(r"two\nlines\x1b ")


def test_numbers_that_json_does_not_know_are_null():
    norms = toeplitz([1.0, math.inf, 1.0])
    norms[0, 2, 1] = math.nan
    document = flow_with(norms).to_dict()
    json.dumps(document, allow_nan=False)
    assert document["states"][0]["norms"] == [
        [1.0, None, None],
        [None, 1.0, None],
        [1.0, None, 1.0],
    ]
    assert document["by_lag"]["mean"] == [1.0, None, 1.0]
    assert document["horizon"]["lag"] is None
    assert document["decay"] is None
    assert document["attribution"] is None


def add_up(x, state):
    outputs = []
    for x_t in x:
        state = {"sum": torch.tanh(state["sum"] + x_t), "count": state["count"] + 1}
        outputs.append(state["sum"])
    return torch.stack(outputs), state


ODD = {
    "projection": lambda x: gradient_flow(bptt.LSTM(4, 5, 2, proj_size=2), x),
    "batch first": lambda x: gradient_flow(nn.GRU(4, 5, batch_first=True), x),
    "unbatched": lambda x: gradient_flow(nn.RNN(4, 5), x[:, 0]),
    "one step": lambda x: gradient_flow(nn.LSTM(4, 5), x[:1]),
    "one step of a cell": lambda x: gradient_flow(bptt.Stepwise(nn.GRUCell(4, 5)), x[:1]),
    "one loss": lambda x: gradient_flow(nn.LSTM(4, 5), x, times=[11], lags=3),
    "one lag": lambda x: gradient_flow(nn.LSTM(4, 5), x, lags=1),
    "resets": lambda x: gradient_flow(nn.GRU(4, 5), x, resets=torch.arange(12) % 5 == 0),
    "not a number": lambda x: gradient_flow(nn.GRU(4, 5), x * math.nan),
    "its own state": lambda x: gradient_flow(
        add_up, x, state={"sum": torch.zeros(3, 4), "count": 0}, state_batch_dim=0
    ),
    "explosion": lambda x: gradient_flow(
        lambda x, h: (x + h, 1e30 * h + x[-1]),
        x,
        state=torch.ones(3, 4),
        state_batch_dim=0,
        dynamics=False,
    ),
}


@pytest.mark.parametrize("which", ODD)
def test_every_part_of_odd_flows_says_something(which):
    flow = ODD[which](torch.randn(12, 3, 4))
    document = json.loads(json.dumps(flow.to_dict(), allow_nan=False))
    assert document["verdict"]["words"]
    assert document["verdict"]["kind"] in str(flow)
    assert document["name"] == flow.name
    assert flow.horizon() is None or 0 <= flow.horizon() < flow.lags
    assert flow.suggest_truncation(0.1) is None or flow.suggest_truncation(0.1) >= 1
    if which == "explosion":
        assert flow.verdict.kind == "exploding"
        assert flow.horizon() is None
    if which in ("not a number", "one step of a cell"):
        assert flow.horizon() is None
    if which == "its own state":
        assert [s["name"] for s in document["states"]] == ["sum"]


def test_the_flow_of_a_language_model_has_words_and_the_losses_of_its_score():
    from bptt._src.language_model.flow import flow_of
    from bptt.data import Tokenizer, encode_text
    from bptt.language_model import Config, LanguageModel

    text = "John came in. Jane smiled at John."
    tokenizer = Tokenizer.train([text], level="word")
    model = LanguageModel(tokenizer, Config(cell="gru", hidden=5, layers=2, dropout=0.5)).double()
    model.train()
    tokens = encode_text(text, tokenizer, reading="stream")
    flow = flow_of(model, tokens, name="mine")
    assert model.training
    assert flow.name == "mine"
    assert flow.tokens == ("John", "came", "in", ".", "Jane", "smiled", "at", "John")
    assert flow.targets == (*flow.tokens[1:], ".")
    assert float(flow.losses.sum()) == pytest.approx(model.score(text).nats)
    assert flow.attribution is not None
    assert flow_of(model, tokens, tokens=3).steps == 3
    with pytest.raises(bptt.errors.CorpusError, match="1 token;"):
        flow_of(model, encode_text("John", tokenizer, reading="stream"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [bptt.RNN, bptt.GRU, bptt.LSTM])
def test_halves_are_looked_at_too(kind, dtype):
    module = bptt.init.orthogonal_(kind(3, 8, dtype=dtype))
    flow = gradient_flow(module, torch.randn(12, 2, 3).to(dtype))
    assert flow.norms.isfinite().all()
    assert flow.dynamics[0].lyapunov.isfinite().all()


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        gradient_flow(bptt.RNN(3, 4), torch.randn(5, 1, 3))


@pytest.mark.parametrize("given", [(3, None), ([1.7], None), (None, 1.5)])
def test_times_and_lags_are_whole_numbers(given):
    of = inspect.unwrap(Pairs.of.__func__)  # without the checks of types, which users do not have
    with pytest.raises(ValueError, match="whole number"):
        of(Pairs, 5, 1, *given)


def test_what_torch_warns_of_is_no_error_where_warnings_are_errors():
    """Forward mode is loaded at its first use, which takes a process of its own."""
    script = "import torch, bptt; bptt.gradient_flow(bptt.GRU(3, 4), torch.randn(5, 1, 3))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
