"""Training with --credit and --memory: what an update's gradient is, and the same bits again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

from bptt._src.documents import sealed
from bptt._src.dropout import numbered
from bptt._src.language_model.options_file import read_options
from bptt._src.language_model.probe import TextProbe
from bptt._src.language_model.setup import make_optimizer
from bptt.data import Streams
from bptt.errors import CheckpointError, ConfigError
from bptt.language_model import Config, LanguageModel, Run, resume, start, train


def weights(run: Run, name: str = "checkpoint.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.path / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_model(a: Run, b: Run) -> bool:
    """Whether the weights, best and last, are the same; runs may differ in what is not weights."""
    last = [{k: v for k, v in weights(r).items() if k.startswith("model.")} for r in (a, b)]
    return same(*last) and same(*(weights(r, "model.safetensors") for r in (a, b)))


@pytest.fixture
def tiny(book):
    """Streams so short, and a model so small, that every term of the gradient can be found."""
    return Config(
        corpus=(str(book),),
        max_tokens=64,
        valid_fraction=0.2,
        hidden=3,
        batch_size=2,
        epochs=2,
        optimizer="sgd",
        learning_rate=0.0,
        clip=0.0,
        schedule="constant",
        save_every=1e9,
        threads=1,
    )


@pytest.fixture
def short(small):
    """For a training of a moment: the text is cut, evaluations are few."""
    return small.changed(max_tokens=400)


def exact(training):
    """In float64, with weights large enough that something flows back."""
    training.model.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in training.model.parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(0.7 * drawn)
    return training


def gradients_of(training):
    """Train; give for each update its gradient times its tokens, and its tokens."""
    found, tokens = [], []
    update, count = training.step.update, training._count

    def note(rate, norm):
        found.append([p.grad.to_dense().clone() for p in training.model.parameters()])
        return update(rate, norm)

    def noted(nats, n, seconds, **seen):
        tokens.append(n)
        return count(nats, n, seconds, **seen)

    training.step.update, training._count = note, noted
    training.fit()
    return [[g * n for g in gs] for gs, n in zip(found, tokens, strict=True)], tokens


def streams_of(training, steps):
    """The streams of each epoch, whole: [T + 1, B] tokens."""
    config = training.config
    reader = Streams(
        training.text.train, batch_size=config.batch_size, steps=steps, seed=config.seed
    )
    for _ in range(config.epochs):
        batches = list(reader)
        inputs = torch.cat([b.inputs for b in batches])
        yield torch.cat([inputs, batches[-1].targets[-1:]]), [len(b.inputs) for b in batches]


def terms_of(model, tokens):
    """C[t, s] of the summed losses of the streams: for each t, for each s ≤ t, a list."""
    T = len(tokens) - 1
    names = [n for n, _ in model.named_parameters()]
    uses = [[p.detach().clone().requires_grad_() for p in model.parameters()] for _ in range(T)]
    state, losses = None, []
    for t in range(T):
        used = dict(zip(names, uses[t], strict=True))
        logits, state = torch.func.functional_call(model, used, (tokens[t : t + 1], state))
        losses.append(cross_entropy(logits[0], tokens[t + 1], reduction="sum"))
    found = []
    for t in range(T):
        flat = [p for s in range(t + 1) for p in uses[s]]
        g = torch.autograd.grad(losses[t], flat, retain_graph=True, allow_unused=True)
        g = [torch.zeros_like(p) if a is None else a for a, p in zip(g, flat, strict=True)]
        found.append([g[i : i + len(names)] for i in range(0, len(g), len(names))])
    return found


WINDOWS = [(1, 2), (1, 4), (3, 4), (2, 5), (3, 6), (3, 10), (4, 11), (5, 20), (7, 100)]


@pytest.mark.parametrize(("every", "reach"), WINDOWS)
def test_the_updates_of_an_epoch_are_one_pass_with_the_plans_windows(tiny, tmp_path, every, reach):
    """By the definition: each term C[t, s] of the whole streams, s within the window of t."""
    others = {1: ("rnn", 1), 2: ("gru", 1), 5: ("mgu", 1), 7: ("peephole-lstm", 2)}
    cell, layers = others.get(every, ("lstm", 1 + every % 2))
    credit = f"truncated:every={every},reach={reach}"
    training = exact(start(tiny.changed(credit=credit, cell=cell, layers=layers), tmp_path / "r"))
    updates, counted = gradients_of(training)
    names = [n for n, _ in training.model.named_parameters()]
    done, shorter = 0, False
    for tokens, lengths in streams_of(training, every):
        found = updates[done : done + len(lengths)]
        assert counted[done : done + len(lengths)] == [2 * n for n in lengths]
        done, shorter = done + len(lengths), shorter or lengths[-1] < every
        C = terms_of(training.model, tokens)
        expected = [torch.zeros_like(p) for p in training.model.parameters()]
        beyond = [torch.zeros_like(p) for p in training.model.parameters()]
        for t, s in zip(*np.tril_indices(len(C)), strict=True):
            first = every * (t // every)
            if s >= first - (reach - every):
                expected = [a + c for a, c in zip(expected, C[t][s], strict=True)]
                if s < first:
                    beyond = [a + c for a, c in zip(beyond, C[t][s], strict=True)]
        for name, *terms, e, b in zip(names, *found, expected, beyond, strict=True):
            torch.testing.assert_close(sum(terms), e, rtol=1e-9, atol=1e-10)
            if not name.startswith("readout"):
                assert b.norm() > 1e-3 * e.norm()  # what truncated:every leaves out
    assert done == len(updates) > 4
    assert shorter or every < 3


@pytest.mark.parametrize(
    ("every", "reach", "memory"),
    [(*w, None) for w in WINDOWS] + [(*w, "recompute:2,segment=2") for w in [(3, 4), (2, 5)]],
)
def test_an_update_is_that_of_the_parameters_as_they_are_now(tiny, tmp_path, every, reach, memory):
    """Learning, from the state as it was stored, by a graph made anew for each update."""
    config = tiny.changed(
        credit=f"truncated:every={every},reach={reach}",
        learning_rate=0.5,
        memory=memory,
        layers=1 + every % 2,
    )
    training = exact(start(config, tmp_path / "run"))
    model = LanguageModel(training.text.tokenizer, training.config).double()
    model.load_state_dict(training.model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    training.fit()

    for tokens, lengths in streams_of(training, every):
        stored, first = {0: None}, 0
        for length in lengths:
            since, end = max(0, first - (reach - every)), first + length
            state, logits = stored[since], []
            for t in range(since, end):
                y, state = model(tokens[t : t + 1], state)
                logits.append(y)
                stored[t + 1] = tuple(s.detach() for s in state)
            loss = cross_entropy(
                torch.cat(logits[first - since :]).flatten(0, 1),
                tokens[first + 1 : end + 1].flatten(),
            )
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= 0.5 * g
            first = end
    for name, p in model.state_dict().items():
        torch.testing.assert_close(training.model.state_dict()[name], p, rtol=1e-7, atol=1e-9)
        assert (p - before[name]).norm() > 0.01


def plain(config, text):
    """Truncated BPTT as it is usually written: windows, the state detached between them."""
    torch.manual_seed(config.seed)
    model = LanguageModel(text.tokenizer, config).double()
    optimizer = make_optimizer(config, list(model.parameters()))
    reader = Streams(
        text.train,
        batch_size=config.batch_size,
        steps=config.steps or 35,
        sampling=config.sampling,
        seed=config.seed,
    )
    for _ in range(config.epochs):
        state = None
        for batch in reader:
            if batch.fresh:
                state = None
            with numbered(range(batch.size)):  # dropout's masks are the sequences', not the batch's
                logits, state = model(batch.inputs, state)
            nats = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
            optimizer.zero_grad()
            (nats / batch.tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            state = tuple(s.detach() for s in state)
    return model.state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 2, "dropout": 0.3}, {"sampling": "random"}, {"steps": None}],
    ids=str,
)
def test_the_default_is_plain_truncated_bptt(short, tmp_path, options):
    config = short.changed(schedule="constant", **options)
    training = start(config, tmp_path / "run")
    training.model.double()
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    training.fit()
    expected = plain(config, training.text)
    for name, p in training.model.state_dict().items():
        torch.testing.assert_close(p, expected[name], rtol=1e-6, atol=1e-7)
        assert (p - before[name]).norm() > 0.01


def test_truncated_on_a_stream_is_its_window(short, tmp_path):
    by_steps = train(short, tmp_path / "steps")
    none = short.changed(steps=None)
    assert same_model(by_steps, train(none.changed(credit="truncated:10"), tmp_path / "truncated"))
    both = short.changed(credit="truncated:10")
    assert same_model(by_steps, train(both, tmp_path / "both"))
    blocks = none.changed(credit="truncated:every=10,reach=10")
    assert same_model(by_steps, train(blocks, tmp_path / "blocks"))
    full = train(short.changed(steps=35), tmp_path / "full")
    assert same_model(full, train(none, tmp_path / "default"))
    assert same_model(full, train(none.changed(credit="truncated:35"), tmp_path / "35"))
    assert not same_model(full, by_steps)


CREDITS = {
    "truncated": {"credit": "truncated:7"},
    "truncated within the window": {"credit": "truncated:4", "steps": 10},
    "windows that reach back": {"credit": "truncated:every=6,reach=17", "layers": 2},
    "randomized": {"credit": "randomized:5", "dropout": 0.2},
    "randomized, shared": {"credit": "randomized:5,tail=constant,shared=True"},
    "adaptive": {"credit": "adaptive:0.9,start=9,most=20", "dropout": 0.2},
    "adaptive, sentences": {
        "credit": "adaptive:0.9,start=9,most=20,adapt_every=4",
        "reading": "sentences",
    },
    "adaptive, lines": {"credit": "adaptive:0.9,start=3,most=20", "reading": "lines"},
    "adaptive, random windows": {
        "credit": "adaptive:0.9,start=4,most=20,adapt_every=5",
        "sampling": "random",
        "steps": 12,
    },
    "store": {"memory": "store,segment=4", "dropout": 0.2, "layers": 2, "steps": 10},
    "recompute and history": {
        "credit": "truncated:every=6,reach=17",
        "memory": "recompute:2,segment=6",
        "dropout": 0.2,
    },
    "recompute and randomized": {"credit": "randomized:5", "memory": "recompute:2,segment=6"},
}


@pytest.mark.parametrize("variant", CREDITS.values(), ids=CREDITS.keys())
def test_stopped_and_resumed_it_comes_to_the_same_bits(short, tmp_path, variant):
    config = short.changed(**{"steps": None, "epochs": 3, "eval_every": 7, **variant})
    whole = start(config, tmp_path / "whole")
    ends = []  # the last update of each epoch
    whole.watch.updated = lambda t, loss: (
        ends.append(t.progress.updates) if t.reader.position == len(t.reader) else None
    )
    whole.fit()
    assert len(ends) == 3

    parts = start(config, tmp_path / "parts")
    for stop_at in sorted({2, ends[0], ends[0] + 1, (ends[0] + ends[1]) // 2, ends[1]}):
        reason = parts.fit(lambda p=parts, n=stop_at: "stop" if p.progress.updates == n else None)
        assert reason == "stop"
        steps = getattr(parts.reader, "steps", None)
        parts.close()
        torch.manual_seed(12345)
        parts = resume(parts.run.path)
        assert parts.progress.updates == stop_at
        assert getattr(parts.reader, "steps", None) == steps
    parts.fit()
    assert same(weights(whole.run), weights(parts.run))
    assert same_model(whole.run, parts.run)
    timeless = [
        [{k: v for k, v in m.items() if k != "seconds"} for m in t.run.metrics()]
        for t in (whole, parts)
    ]
    assert timeless[0] == timeless[1]
    assert parts.credit.state_dict() == whole.credit.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "truncated:every=6,reach=17", "steps": None},
        {"credit": "truncated:3", "reading": "sentences"},
    ],
    ids=str,
)
def test_store_and_recompute_come_to_the_same_bits(short, tmp_path, options):
    config = short.changed(dropout=0.2, layers=2, epochs=1, **options)
    runs = {
        memory: train(config.changed(memory=memory), tmp_path / str(number))
        for number, memory in enumerate(
            ["store,segment=4", "recompute:2,segment=4", "recompute:1MB,segment=4"]
        )
    }
    first, *others = runs.values()
    assert all(same_model(first, other) for other in others)


def test_memory_may_change_when_a_run_is_resumed_and_its_credit_may_not(short, tmp_path):
    config = short.changed(epochs=1, credit="truncated:3", steps=None, memory="store,segment=4")
    run = train(config, tmp_path / "run")
    on = resume(run.path, {"memory": "recompute:2,segment=4", "epochs": 2})
    on.fit()
    on.close()
    assert same_model(run, train(config.changed(epochs=2), tmp_path / "whole"))
    for change in ("full", "truncated:4", "truncated:every=2,reach=3"):
        with pytest.raises(ConfigError, match=r"credit cannot change .*memory"):
            resume(run.path, {"credit": change})


# ------------------------------------------------------------------------- other readings


@pytest.mark.parametrize(
    "reading",
    [{"reading": "sentences"}, {"reading": "lines"}, {"sampling": "random", "steps": 9}],
    ids=str,
)
def test_where_nothing_is_carried_the_plan_holds_within_the_sequence(tiny, tmp_path, reading):
    config = tiny.changed(credit="truncated:every=2,reach=5", epochs=1, max_tokens=None, **reading)
    training = exact(start(config, tmp_path / "run"))
    model, batch = training.model, next(iter(training.reader))
    training.update(batch)
    found = [p.grad.to_dense().clone() for p in model.parameters()]
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for b in range(batch.inputs.shape[1]):
        targets = batch.targets[:, b][batch.targets[:, b] >= 0]
        tokens = torch.cat([batch.inputs[:1, b], targets])[:, None]
        for t, row in enumerate(terms_of(model, tokens)):
            for s, c in enumerate(row):
                if s >= 2 * (t // 2) - 3:
                    expected = [a + g for a, g in zip(expected, c, strict=True)]
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g * batch.tokens, e, rtol=1e-9, atol=1e-10)
    assert training.reach_back == 0


# ------------------------------------------------------------------------------- adaptive


class Measured:
    """Notes the windows of each epoch and what is measured."""

    def __init__(self, training):
        self.windows, self.lines = [], []
        training.watch.updated = lambda t, loss: self.windows.append(
            (t.reader.epoch, t.reader.steps, t.reach_back)
        )
        training.watch.measured = lambda line: self.lines.append(line) if "credit" in line else None


def test_on_a_stream_the_windows_follow_what_was_measured(small, tmp_path):
    config = small.changed(steps=None, credit="adaptive:0.9,start=9,most=20", epochs=3)
    training = start(config, tmp_path / "run")
    noted = Measured(training)
    assert training.fit(lambda: "without end" if len(noted.lines) > 9 else None) == "epochs"
    reach = [9, *(m["credit_reach"] for m in noted.lines)]
    assert len(reach) == 4  # an epoch's end each
    assert reach[1] != 9
    assert set(noted.windows) == {(e, reach[e], reach[e]) for e in range(3)}
    saved = [m for m in training.run.metrics() if "credit" in m]
    assert [m["credit_measurements"] for m in saved] == [1, 2, 3]
    assert saved == noted.lines
    assert f"reach {reach[-1]}, decay" in saved[-1]["credit"]
    assert training.run.load_checkpoint()[1]["credit"] == training.credit.state_dict()


@pytest.mark.parametrize("reading", [{"reading": "sentences"}, {"sampling": "random"}], ids=str)
@pytest.mark.parametrize("every", [5, 7])
def test_elsewhere_it_measures_every_so_many_updates(short, tmp_path, reading, every):
    credit = f"adaptive:0.9,start=9,most=20,adapt_every={every}"
    training = start(short.changed(credit=credit, **reading), tmp_path / "run")
    places = []
    training.watch.updated = lambda t, loss: places.append((t.reader.epoch, t.reader.position))
    assert training.fit(lambda: "without end" if len(places) > 500 else None) == "epochs"
    assert training.reader.epoch == 2
    assert len(set(places)) == len(places) == training.progress.updates  # nothing read twice
    at = [m["update"] for m in training.run.metrics() if "credit" in m]
    assert at == list(range(every, training.progress.updates + 1, every))


def test_measuring_does_not_disturb_what_is_random(short, tmp_path):
    """An adaptive credit that always comes to the same reach, beside one that never asks."""
    for number, reading in enumerate([{"reading": "sentences"}, {"steps": None}]):
        config = short.changed(dropout=0.3, layers=2, **reading)
        asks = "adaptive:1e-9,start=12,least=12,most=12"
        run = train(config.changed(credit=asks), tmp_path / f"asks{number}")
        assert len([m for m in run.metrics() if "credit" in m]) == 2
        never = config.changed(credit="truncated:every=12,reach=24")
        assert same_model(run, train(never, tmp_path / f"never{number}"))


def test_the_probe_looks_at_the_text(small, tmp_path):
    training = start(small.changed(dropout=0.5), tmp_path / "run")
    model, text = training.model, training.text.train
    random = torch.get_rng_state()
    decay = TextProbe(model, text, training.config, 0)(30)
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert decay.norms.shape == (64, 30)
    assert (decay.norms > 0).all()
    again, other = (TextProbe(model, text, training.config, n)._places(30) for n in (0, 1))
    assert np.array_equal(again, TextProbe(model, text, training.config, 0)._places(30))
    assert not np.array_equal(again, other)
    ids = np.asarray(text.ids)
    for column in again.T[:5]:
        assert len(column) == 30 + 20 + 1
        assert any(np.array_equal(ids[i : i + 51], column) for i in range(len(ids) - 50))


@pytest.mark.parametrize("reading", ["stream", "sentences"])
def test_the_probe_follows_the_loss_of_the_next_token(short, tmp_path, reading):
    training = exact(start(short.changed(reading=reading), tmp_path / "run"))
    model, text = training.model, training.text.train
    decay = TextProbe(model, text, short, 0)(4)
    ids = torch.from_numpy(TextProbe(model, text, short, 0)._places(4))
    with torch.no_grad():
        _, state = model(ids[:-2])
    state = [s.requires_grad_() for s in state]
    logits, _ = model(ids[-2:-1], tuple(state))
    (-logits[0].log_softmax(-1)[range(64), ids[-1]].mean()).backward()
    expected = torch.cat([s.grad for s in state], dim=2)[0]
    np.testing.assert_allclose(decay.norms[:, 1], expected.norm(dim=1), rtol=1e-10)
    assert decay.sums[0] == pytest.approx(float(expected.mean(0).norm()), rel=1e-10)


@pytest.mark.parametrize("reading", ["sentences", "lines"])
def test_the_probe_begins_where_a_sequence_begins(small, tmp_path, reading):
    training = start(small.changed(reading=reading), tmp_path / "run")
    text = training.text.train
    places = TextProbe(training.model, text, training.config, 0)._places(100)
    sizes = np.diff(text.offsets)
    assert len(places) == np.sort(sizes)[-64]
    wholes = {
        tuple(text.ids[o : o + len(places)])
        for o, size in zip(text.offsets, sizes, strict=False)
        if size >= len(places)
    }
    assert {tuple(c) for c in places.T} <= wholes
    assert len(TextProbe(training.model, text, training.config, 0)._places(4)) == 5


def test_a_text_shorter_than_the_lags_is_looked_at_whole(tiny, tmp_path):
    training = start(tiny.changed(max_tokens=64), tmp_path / "run")
    length = len(training.text.train.ids)
    places = TextProbe(training.model, training.text.train, training.config, 0)._places(100)
    assert places.shape == (length, 64)


# -------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"credit": "truncated:every=10,reach=35", "steps": 35}, "leave steps=35 out"),
        ({"credit": "truncated:every=10,reach=35", "steps": 5}, "leave steps=5 out"),
        ({"credit": "truncated:35", "steps": 10}, "truncated:every=10,reach=35"),
        ({"credit": "adaptive:0.1", "steps": 35}, "leave steps=35 out"),
        ({"credit": "adaptive:0.1", "steps": 15}, "leave steps=15 out"),
        ({"credit": "adaptive:0.1,adapt_every=5"}, "leave adapt_every out"),
        ({"credit": "nonsense"}, "use full, truncated:35"),
        ({"memory": "recompute"}, "memory must be store, recompute:64MB"),
        ({"memory": "64MB"}, "memory must be store, recompute:64MB"),
    ],
)
def test_refuses_what_does_not_fit_and_says_what_would(options, message):
    with pytest.raises(ConfigError) as caught:
        Config(**options)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "truncated:every=10,reach=35", "steps": 10},
        {"credit": "truncated:every=10,reach=35", "steps": 35, "sampling": "random"},
        {"credit": "truncated:every=10,reach=35", "reading": "lines"},
        {"credit": "truncated:10", "steps": 35},
        {"credit": "adaptive:0.1,adapt_every=5", "steps": 35, "sampling": "random"},
        {"credit": "adaptive:0.1,adapt_every=5", "reading": "sentences"},
        {"credit": "randomized:10", "steps": 35},
        {"credit": "randomized:10", "memory": "recompute:64MB,segment=4"},
        {"credit": "mine.Own:3"},  # looked for when training begins
    ],
    ids=str,
)
def test_what_fits_goes_through_config_json_unchanged(tmp_path, options):
    config = Config(**options)
    (tmp_path / "config.json").write_text(sealed(config.to_dict()))
    assert Config(**read_options(tmp_path / "config.json")) == config


def test_a_budget_that_is_too_small_says_how_much_it_takes(small, tmp_path):
    training = start(small.changed(memory="recompute:1kB"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"a budget of 1kB is too small.*at least"):
        training.fit()


OWN = """
import bptt

class Own(bptt.Credit):
    window = 5
    asked = []

    def __init__(self, tail=0.5):
        self.tail, self.epochs = tail, 0

    def plan(self, steps, batch=1, generator=None):
        return bptt.Plan(steps, carry=[self.tail] * steps)

    def adapt(self, probe):
        self.epochs += 1
        self.asked.append(probe(4).norms.shape)

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]
"""


def test_a_credit_of_ones_own_trains_and_is_saved(short, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "own_for_training.py").write_text(OWN)
    config = short.changed(steps=None, credit="own_for_training.Own:0.25")
    run = train(config, here / "run")
    assert len([m for m in run.metrics() if m.get("credit_epochs")]) == 2
    assert run.load_checkpoint()[1]["credit"] == {"epochs": 2}
    assert run.load_checkpoint()[1]["reader"]["steps"] == 5
    with pytest.raises(ConfigError, match="use allow_code"):
        resume(run.path, {"epochs": 3})
    resume(run.path, {"credit": config.credit}).close()  # which says so too
    on = resume(run.path, {"epochs": 3}, allow_code=True)
    assert on.credit.epochs == 2
    on.fit()
    on.close()
    assert on.credit.epochs == 3
    assert not same_model(run, train(short.changed(steps=5), here / "full"))
    with pytest.raises(ConfigError, match="chooses the windows itself"):
        start(config.changed(steps=10), here / "refused")

    # Elsewhere the model can be read and measured; only to train it takes the class.
    sys.modules.pop("own_for_training")
    monkeypatch.chdir(tmp_path)
    assert run.load_model().sample("John", length=3, seed=0)
    with pytest.raises(ConfigError, match=r"directory of own_for_training\.py"):
        resume(run.path, {"epochs": 4}, allow_code=True)
    (here / "again").mkdir()
    with pytest.raises(ConfigError, match="cannot be imported"):
        start(config, here / "again")
    assert not list((here / "again").iterdir())


def test_a_damaged_credit_in_a_checkpoint_is_said_so(small, tmp_path):
    run = train(small.changed(steps=None, credit="adaptive:0.9,start=9,most=20"), tmp_path / "run")
    tensors, about = run.load_checkpoint()
    about.pop("format")
    for damage in ({"reach": 10**6}, {}):
        run.save_checkpoint(tensors, {**about, "credit": damage})
        with pytest.raises(CheckpointError, match=r"is damaged"):
            resume(run.path)


def test_the_credit_changes_the_result(short, tmp_path):
    """Every option does something: on a stream and on sentences."""
    found = {}
    stream = ["full", "truncated:4", "truncated:every=3,reach=4", "randomized:5", "adaptive:0.9"]
    options = ["truncated:every=2,reach=3", "randomized:5,tail=constant", "randomized:pi=0.9"]
    asked = [("stream", s) for s in stream] + [("sentences", s) for s in ["full", *options]]
    for reading, spelling in asked:
        config = short.changed(steps=None, credit=spelling, reading=reading, epochs=1)
        run = train(config, tmp_path / str(len(found)))
        model = weights(run, "model.safetensors")
        for other, theirs in found.items():
            assert not same(model, theirs), f"{reading} {spelling} gives what {other} gives"
        found[reading, spelling] = model
