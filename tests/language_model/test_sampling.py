from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bptt._src.language_model import sampling
from bptt._src.language_model.sampling import choose
from bptt.errors import BpttWarning, ConfigError
from bptt.language_model import train


@pytest.fixture
def model(run):
    return run.load_model()


def test_the_seed_makes_it_repeatable(model):
    once = model.sample("John", length=30, seed=1)
    assert once == model.sample("John", length=30, seed=1)
    assert once != model.sample("John", length=30, seed=2)
    assert once.startswith("John")


def test_no_temperature_is_the_likeliest_token_each_time(model):
    greedy = model.sample("John", length=20, temperature=0)
    assert greedy == model.sample("John", length=20, temperature=0, seed=9)
    assert greedy == model.sample("John", length=20, top_k=1)
    assert greedy == model.sample("John", length=20, top_p=1e-6)
    assert greedy == model.sample("John", length=20, temperature=1e-30)


def test_the_state_is_warmed_up_on_the_prompt(model):
    """The next token's distribution is the one after reading the whole prompt."""
    prompt = "John sees Mary again.\nJane greets"
    ids = model.tokenizer.encode("\n") + model.tokenizer.encode(prompt)
    with torch.no_grad():
        logits = model(torch.tensor(ids).unsqueeze(1))[0][-1, 0]
    likeliest = model.tokenizer.decode([int(logits.argmax())])
    assert model.sample(prompt, length=1, temperature=0).split()[-1] == likeliest.strip()


def test_pieces_come_one_by_one_and_add_up(model):
    pieces = list(model.sample_stream("John", length=12, seed=3))
    assert len(pieces) >= 12
    assert "".join(pieces) == model.sample("John", length=12, seed=3)
    assert model.sample("", length=0) == ""


def test_the_unknown_token_is_never_drawn(small, tmp_path):
    with pytest.warns(BpttWarning, match="unknown"):
        model = train(small.changed(vocabulary=6, epochs=1), tmp_path / "run").load_model()
    assert model.tokenizer.unknown is not None
    with torch.no_grad():
        model.readout.bias[model.tokenizer.unknown] = 50
    assert "<unk>" not in model.sample("", length=50, seed=0)


def test_a_prompt_that_is_not_known_is_said_so(model):
    with pytest.warns(BpttWarning, match="1 of the prompt's 2 tokens are not in the vocabulary"):
        model.sample("John zebra", length=1)


def test_sentences_end_and_begin_anew(small, tmp_path):
    model = train(small.changed(reading="sentences"), tmp_path / "run").load_model()
    text = model.sample("John", length=80, seed=0)
    assert text.count("\n") > 3
    assert "<s>" not in text
    assert "</s>" not in text


@pytest.mark.parametrize("reading", ["stream", "sentences"])
def test_single_steps_give_the_logits_of_the_modules(small, tmp_path, reading, monkeypatch):
    """Hooks, a readout of another kind and half precision go through the modules, to the same."""
    model = train(small.changed(reading=reading, layers=2), tmp_path / "run").load_model()
    drawn, quick, slow = sampling.choose, [], []

    def sampled(kept):
        def noted(logits, *options):
            kept.append(logits.copy())
            return drawn(logits, *options)

        monkeypatch.setattr(sampling, "choose", noted)
        return model.sample("John", length=30, seed=4)

    text = sampled(quick)
    assert isinstance(sampling._after(model), sampling._Quickly)
    handle = model.readout.register_forward_hook(lambda *_: None)
    assert not isinstance(sampling._after(model), sampling._Quickly)
    assert sampled(slow) == text
    for a, b in zip(quick, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    handle.remove()
    model.bfloat16()
    assert not isinstance(sampling._after(model), sampling._Quickly)
    assert model.sample("John", length=5, seed=4)


def drawing(logits, seed=0):
    """Draw from logits again and again."""
    generator, logits = torch.Generator().manual_seed(seed), logits.numpy()

    def draw(count, *options, **others):
        numbers = torch.rand(count, dtype=torch.float64, generator=generator).tolist()
        return [choose(logits, number, *options, **others) for number in numbers]

    return draw


def test_top_k_keeps_k_and_of_equal_ones_the_first():
    """As sorting all of them in order would."""
    logits = torch.randint(6, (40,), generator=torch.Generator().manual_seed(0)).float()
    draw = drawing(logits)
    order = logits.sort(descending=True, stable=True).indices.tolist()
    for k in (1, 2, 7, 39, 40, 100):
        assert {*draw(1500, 3.0, top_k=k)} == {*order[:k]}
    for p in (0.05, 0.3, 0.9):
        shares = logits.double().div(3).softmax(-1)[order]
        count = int((shares.cumsum(-1) - shares < p).sum())
        assert {*draw(1500, 3.0, top_p=p)} == {*order[:count]}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(bad):
    for temperature in (0.0, 1.0, 2.0):
        with pytest.raises(RuntimeError, match=f"the largest logit of the next token is {bad}"):
            choose(np.array([0.0, bad, 1.0], np.float32), 0.5, temperature)
        with pytest.raises(RuntimeError, match="is -inf"):
            choose(np.full(3, -np.inf, np.float32), 0.5, temperature)


def test_the_least_and_the_greatest_number_choose_what_has_probability():
    logits = np.array([-np.inf, 2, -np.inf, 2, -np.inf], np.float32)
    assert choose(logits, 0.0) == 1
    assert choose(logits, math.nextafter(1, 0)) == 3
    for size in range(2, 400):
        assert (
            choose(np.append(np.zeros(size, np.float32), np.float32(-np.inf)), math.nextafter(1, 0))
            == size - 1
        )


def test_drawn_as_often_as_the_probabilities_say():
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    draw = drawing(logits)

    def shares(**options):
        drawn = draw(4000, **options)
        return torch.bincount(torch.tensor(drawn), minlength=4) / 4000

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1)
        torch.testing.assert_close(shares(temperature=temperature), expected, atol=0.03, rtol=0)
    two = torch.tensor([-math.inf, 3.0, 2.0, -math.inf]).softmax(-1)
    torch.testing.assert_close(shares(top_k=2), two, atol=0.03, rtol=0)
    # The likeliest has 0.66 of the probability, the two likeliest 0.90.
    torch.testing.assert_close(shares(top_p=0.8), two, atol=0.03, rtol=0)
    assert shares(top_p=0.6)[1] == 1
    assert shares(top_p=1.0)[3] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be"),
        ({"temperature": 0.0, "top_k": 3}, "top_k=3 has no effect with temperature=0"),
        ({"temperature": -0.0, "top_p": 0.5}, "top_p=0.5 has no effect with temperature=0"),
    ],
)
def test_options_out_of_range_are_refused_at_once(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.sample_stream("John", **options)


def test_a_sentence_begins_from_a_zero_state(small, tmp_path, monkeypatch):
    model = train(small.changed(reading="sentences"), tmp_path / "run").load_model()
    hidden, beginnings = model.hidden, []

    def noted(tokens, state=None):
        h, after = hidden(tokens, state)
        if int(tokens[0, 0]) == model.tokenizer.start:
            beginnings.append(h)
        return h, after

    monkeypatch.setattr(model, "hidden", noted)
    model.sample("", length=60, seed=0)
    assert len(beginnings) > 3
    assert all(torch.equal(h, beginnings[0]) for h in beginnings)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.99}])
def test_extreme_temperatures_are_the_likeliest_or_any_token(options):
    draw = drawing(torch.tensor([1.0, 3.0, 2.999999, -math.inf]))
    for cold in (5e-324, 1e-320, 1e-50):
        assert {*draw(20, cold, **options)} == {1}
    for hot in (1e40, 1e300):
        assert {*draw(60, hot, **options)} == {0, 1, 2}
