from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import fields, replace
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bptt.data import IGNORED, TASKS, Adding, Copy, CopyStream, TaskBatch, TemporalOrder, make_task
from bptt.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def columns(batch: TaskBatch) -> list[tuple[list[int], list[int]]]:
    """The symbols and the targets of each sequence; -1 is a step without input."""
    ids = batch.inputs.argmax(-1)
    ids[batch.inputs.sum(-1) == 0] = -1
    return list(zip(ids.T.tolist(), batch.targets.T.tolist(), strict=True))


def equal(a: TaskBatch, b: TaskBatch) -> bool:
    return (
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.fresh == b.fresh
    )


def logits(classes: Tensor, outputs: int) -> Tensor:
    """Answers that are as good as certain, [T, B, O]."""
    return 50.0 * torch.nn.functional.one_hot(classes.clamp(min=0), outputs)


# Copy


@pytest.mark.parametrize("masked", [False, True])
def test_copy_is_symbols_blanks_delimiter_blanks_and_the_symbols_are_asked(masked):
    task = Copy(lag=7, symbols=3, alphabet=5, masked=masked, batch_size=50)
    for inputs, targets in columns(task.batch(generator())):
        symbols = inputs[:3]
        assert set(symbols) <= {0, 1, 2, 3, 4}
        assert inputs[3:] == [5, 5, 5, 6, 5, 5, 5]
        assert targets == [IGNORED if masked else 5] * 7 + symbols


def test_copy_draws_every_symbol_equally_often_and_independently():
    task = Copy(lag=3, symbols=2, alphabet=3, batch_size=9000)
    pairs = Counter(tuple(inputs[:2]) for inputs, _ in columns(task.batch(generator())))
    assert len(pairs) == 9
    assert all(abs(count - 1000) < 150 for count in pairs.values())  # 5 standard deviations


def test_copy_has_the_published_size():
    gap = 100
    task = Copy(symbols=10, alphabet=8, lag=gap + 10)
    assert (task.steps, task.inputs, task.outputs) == (gap + 20, 10, 9)
    assert task.baseline == pytest.approx(10 * math.log(8) / (gap + 20))
    (inputs, _), *_ = columns(task.batch(generator()))
    assert inputs.index(task.delimiter) == 10 + gap - 1  # T - 1 blanks before it


@pytest.mark.parametrize("masked", [False, True])
def test_the_baseline_of_copy_is_what_answers_by_the_step_alone_can_reach(masked):
    task = Copy(lag=6, symbols=3, alphabet=4, masked=masked, batch_size=20_000)
    batch = task.batch(generator())
    entropies = [entropy(row) for row in batch.targets.tolist() if IGNORED not in row]
    assert sum(entropies) / len(entropies) == pytest.approx(task.baseline, rel=1e-3)
    # The same by the task's own loss: blanks, then any symbol.
    answers = torch.zeros(task.steps, 20_000, task.outputs)
    answers[:6, :, 4] = 50
    answers[6:, :, 4] = -50
    assert float(task.loss(answers, batch)) == pytest.approx(task.baseline, rel=1e-5)


def entropy(values: list[int]) -> float:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log(share) for share in shares)


# CopyStream


def test_a_stream_is_copies_end_to_end():
    """Read by what the task says: a delimiter, symbols, as many blanks; the same later."""
    task = CopyStream(shortest=3, longest=6, steps=400, alphabet=3, batch_size=20)
    lengths: Counter[int] = Counter()
    begins: Counter[int] = Counter()
    for inputs, targets in columns(task.batch(generator())):
        starts = [t for t, symbol in enumerate(inputs) if symbol == 4]
        begins[starts[0]] += 1
        for start, end in pairwise(starts):
            assert (end - start) % 2 == 0
            m = (end - start) // 2
            lengths[m] += 1
            copied = inputs[start : start + m]
            assert set(copied[1:]) <= {0, 1, 2}
            assert inputs[start + m : end] == [3] * m
            assert targets[start : start + m] == [3] * m
            assert targets[start + m : end] == copied
    assert set(lengths) == {3, 4, 5, 6}
    assert all(abs(n / lengths.total() - 0.25) < 0.06 for n in lengths.values())
    assert len(begins) > 5  # not in step


def test_windows_of_a_stream_go_on_and_do_not_depend_on_their_length():
    whole = next(iter(CopyStream(shortest=3, longest=6, steps=60, batch_size=5, seed=3)))
    pieces = list(islice(CopyStream(shortest=3, longest=6, steps=7, batch_size=5, seed=3), 60 // 7))
    assert [piece.fresh for piece in pieces] == [True] + [False] * 7
    assert torch.equal(torch.cat([p.inputs for p in pieces]), whole.inputs[:56])
    assert torch.equal(torch.cat([p.targets for p in pieces]), whole.targets[:56])
    assert [p.inputs.shape for p in pieces] == [(7, 5, 6)] * 8


def test_the_streams_of_a_batch_differ():
    batch = CopyStream(steps=40, batch_size=8).batch(generator())
    assert len({tuple(inputs) for inputs, _ in columns(batch)}) == 8


@pytest.mark.parametrize(("shortest", "longest"), [(10, 10), (5, 10)])
def test_the_baseline_of_streams_is_that_of_any_symbol_at_the_right_time(shortest, longest):
    task = CopyStream(shortest=shortest, longest=longest, steps=2000, batch_size=50)
    batch = task.batch(generator())
    answers = torch.zeros(2000, 50, task.outputs)
    # What a model knows that sees where a copy begins and where blanks begin.
    reading = batch.inputs.argmax(-1) != task.blank
    turn = torch.cat([reading[:1], reading[:-1]]) & ~reading
    answers[reading] = logits(torch.tensor(task.blank), task.outputs)
    answers[turn] = logits(torch.tensor(task.delimiter), task.outputs)
    rest = ~reading & ~turn
    answers[rest] = torch.tensor([0.0] * task.alphabet + [-50.0] * 2)
    rest[0] = False  # nothing was seen of what comes before
    assert set(batch.targets[rest].tolist()) == {0, 1, 2, 3}
    assert set(batch.targets[turn].tolist()) == {task.delimiter}
    # The first copy may have lost its beginning, and its delimiter with it.
    kept = TaskBatch(batch.inputs[20:], batch.targets[20:], fresh=False)
    assert float(task.loss(answers[20:], kept)) == pytest.approx(task.baseline, rel=5e-3)


# Adding


@pytest.mark.parametrize("length", [4, 7, 30])
@pytest.mark.parametrize("marks", ["early", "halves"])
def test_adding_asks_for_the_sum_of_the_two_marked_at_the_end(length, marks):
    task = Adding(length=length, marks=marks, batch_size=3000)
    batch = task.batch(generator())
    half = length // 2
    pairs: Counter[tuple[int, int]] = Counter()
    for b in range(task.batch_size):
        numbers, marked = batch.inputs[:, b].T.tolist()
        assert all(0 <= number < 1 for number in numbers)
        assert set(marked) == {0, 1}
        first, second = (t for t, mark in enumerate(marked) if mark == 1)
        pairs[first, second] += 1
        *before, last = batch.targets[:, b].tolist()
        assert before == [IGNORED] * (length - 1)
        assert last == pytest.approx(numbers[first] + numbers[second])
    # Which pairs there are, and how often, by enumeration.
    expected: dict[tuple[int, int], float] = defaultdict(float)
    if marks == "halves":
        chosen = [(a, b) for a in range(half) for b in range(half, length)]
    else:
        chosen = [(a, b) for a in range(min(10, half)) for b in range(half) if a != b]
    for a, b in chosen:
        expected[min(a, b), max(a, b)] += 1 / len(chosen)
    assert set(pairs) <= set(expected)
    for pair, share in expected.items():
        error = math.sqrt(share * (1 - share) / 3000)
        assert abs(pairs[pair] / 3000 - share) < 5 * error + 1e-9


def test_the_numbers_to_add_are_uniform():
    batch = Adding(length=10, batch_size=10_000).batch(generator())
    numbers = batch.inputs[..., 0]
    assert float(numbers.mean()) == pytest.approx(1 / 2, abs=0.005)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.002)


def test_the_baseline_of_adding_is_the_best_constant():
    task = Adding(batch_size=50_000, length=10)
    batch = task.batch(generator())
    losses = {
        answer: float(task.loss(torch.full((10, 50_000, 1), answer), batch))
        for answer in (0.95, 1.0, 1.05)
    }
    assert losses[1.0] == pytest.approx(task.baseline, abs=0.003)
    assert losses[1.0] == min(losses.values())
    assert task.baseline == pytest.approx(0.1667, abs=1e-4)  # the published 0.167


def test_the_first_number_of_adding_is_in_the_sum_and_nowhere_else():
    """The lag: without step 0, the answer is anything within 1 of the right one."""
    task = Adding(length=6, batch_size=2000)
    batch = task.batch(generator())
    numbers, marks = batch.inputs.unbind(2)
    begins = marks[0] == 1
    seen = (numbers * marks)[1:].sum(0)
    missing = (batch.targets[-1] - seen)[begins]
    assert torch.allclose(missing, numbers[0, begins], atol=1e-6)
    assert float(missing.std()) > 0.25
    assert task.lag == 5


def test_right_in_adding_is_within_the_originals_004_of_half_the_sum():
    task = Adding(length=4, batch_size=4)
    batch = task.batch(generator())
    answers = batch.targets.clone().unsqueeze(2)
    answers[-1, :, 0] += torch.tensor([0.079, -0.079, 0.081, -0.081])
    assert task.accuracy(answers, batch) == 0.5


# Temporal order


@pytest.mark.parametrize(("length", "spread"), [(10, 0), (40, 0), (100, 10)])
def test_temporal_order_is_two_symbols_among_distractors(length, spread):
    task = TemporalOrder(length=length, spread=spread, batch_size=2000)
    tenth = length // 10
    ends: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    seconds: Counter[int] = Counter()
    classes: Counter[int] = Counter()
    for inputs, targets in columns(task.batch(generator())):
        names = ["EBabcdXY"[symbol] for symbol in inputs if symbol >= 0]
        end = len(names) - 1
        assert names[0] == "E"
        assert names[end] == "B"
        assert set(inputs[end + 1 :]) <= {-1}
        places = [t for t, name in enumerate(names) if name in "XY"]
        assert len(places) == 2
        rest = [name for t, name in enumerate(names[:end]) if t not in {0, *places}]
        assert set(rest) <= set("abcd")
        order = "".join(names[t] for t in places)
        expected = [IGNORED] * task.steps
        expected[end] = ["XX", "XY", "YX", "YY"].index(order)
        assert targets == expected
        ends[end] += 1
        firsts[places[0]] += 1
        seconds[places[1]] += 1
        classes[expected[end]] += 1
    assert set(ends) == set(range(length - 1, length + spread))
    assert set(firsts) == set(range(tenth, 2 * tenth))
    assert set(seconds) == set(range(5 * tenth, 6 * tenth))
    assert all(abs(classes[c] - 500) < 100 for c in range(4))


def test_the_baseline_of_temporal_order_is_any_class():
    task = TemporalOrder(batch_size=20_000)
    batch = task.batch(generator())
    assert entropy(batch.targets[-1].tolist()) == pytest.approx(task.baseline, rel=1e-3)
    answers = torch.zeros(task.steps, 20_000, 4)
    assert float(task.loss(answers, batch)) == pytest.approx(task.baseline)


# What all have in common


@pytest.mark.parametrize(
    "task",
    [
        Copy(lag=3, symbols=1, batch_size=100),
        Copy(lag=5, symbols=2, alphabet=2, batch_size=200),
        CopyStream(shortest=3, longest=3, steps=60, alphabet=2, batch_size=100),
        TemporalOrder(length=10, batch_size=30_000),
        TemporalOrder(length=10, spread=1, batch_size=30_000),
    ],
    ids=str,
)
def test_the_lag_is_exactly_as_far_as_one_must_see(task):
    """Equal inputs of the last ``lag`` steps have different answers; of one more, never."""
    shorter: dict[Any, set[int]] = defaultdict(set)
    enough: dict[Any, set[int]] = defaultdict(set)
    equal_inputs = 0
    for inputs, targets in columns(task.batch(generator())):
        for t, target in enumerate(targets):
            if target == IGNORED or t < task.lag:
                continue
            shorter[tuple(inputs[t - task.lag + 1 : t + 1])].add(target)
            key = tuple(inputs[t - task.lag : t + 1])
            equal_inputs += key in enough
            enough[key].add(target)
    assert equal_inputs > 50
    assert max(map(len, shorter.values())) > 1
    assert max(map(len, enough.values())) == 1


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_what_a_batch_has(name):
    task = make_task(name, batch_size=3)
    batch = task.batch(generator())
    assert batch.inputs.shape == (task.steps, 3, task.inputs)
    assert batch.inputs.dtype == torch.float32
    assert batch.targets.shape == (task.steps, 3)
    assert batch.targets.dtype == (torch.float32 if name == "adding" else torch.int64)
    assert int(batch.targets.max()) < (2 if name == "adding" else task.outputs)
    assert batch.fresh
    assert 0 < task.target < task.baseline / 5
    assert task.lag < task.steps


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_repeated_by_the_generator_alone(name):
    task = make_task(name)
    g = generator(7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = task.batch(g), task.batch(g)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(task.batch(generator(7)), first)
    assert not torch.equal(first.inputs, second.inputs)
    assert not torch.equal(task.batch(generator(8)).inputs, first.inputs)


@pytest.mark.parametrize("name", TASKS)
def test_iteration_gives_the_batches_of_the_seed(name):
    task = make_task(name, seed=7)
    ours, again = list(islice(task, 3)), list(islice(task, 3))
    assert all(map(equal, ours, again))
    assert equal(ours[0], task.batch(generator(7)))
    assert not torch.equal(ours[0].inputs, ours[1].inputs)
    assert [b.fresh for b in ours] == [True] + [name != "copy-stream"] * 2
    assert not equal(next(iter(replace(task, seed=8))), ours[0])


OPTIONS = {
    "copy": {"lag": 9, "symbols": 2, "alphabet": 3, "masked": True, "batch_size": 5, "seed": 1},
    "copy-stream": {
        "shortest": 5,
        "longest": 12,
        "steps": 30,
        "alphabet": 3,
        "batch_size": 5,
        "seed": 1,
    },
    "adding": {"length": 30, "marks": "halves", "batch_size": 5, "seed": 1},
    "temporal-order": {"length": 30, "spread": 3, "batch_size": 5, "seed": 1},
}


@pytest.mark.parametrize(
    ("name", "option", "value"), [(n, o, v) for n in OPTIONS for o, v in OPTIONS[n].items()]
)
def test_every_option_changes_the_batch(name, option, value):
    given = next(iter(make_task(name)))
    changed = next(iter(make_task(name, **{option: value})))
    assert not equal(given, changed)


def test_every_option_is_tested():
    assert {name: {f.name for f in fields(TASKS[name])} for name in TASKS} == {
        name: set(options) for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize("name", ["copy", "copy-stream", "temporal-order"])
def test_right_answers_cost_nothing_and_count(name):
    task = make_task(name)
    batch = task.batch(generator())
    answers = logits(batch.targets, task.outputs)
    assert float(task.loss(answers, batch)) < 1e-6
    assert task.accuracy(answers, batch) == 1
    assert task.accuracy(answers.roll(1, 2), batch) == 0


def test_right_sums_cost_nothing_and_wrong_ones_their_square():
    task = Adding()
    batch = task.batch(generator())
    answers = batch.targets.unsqueeze(2)
    assert float(task.loss(answers, batch)) == 0
    assert task.accuracy(answers, batch) == 1
    assert float(task.loss(answers + 3, batch)) == pytest.approx(9, rel=1e-5)
    assert task.accuracy(answers + 3, batch) == 0


@pytest.mark.parametrize("task", [Copy(masked=True), Adding(), TemporalOrder(spread=4)], ids=str)
def test_only_what_is_asked_counts(task):
    batch = task.batch(generator())
    answers = torch.randn(task.steps, task.batch_size, task.outputs, requires_grad=True)
    (gradient,) = torch.autograd.grad(task.loss(answers, batch), answers)
    assert torch.equal((gradient != 0).any(2), batch.targets != IGNORED)
    asked = {"Copy": 3, "Adding": 1, "TemporalOrder": 1}[type(task).__name__]
    assert (batch.targets != IGNORED).sum(0).tolist() == [asked] * task.batch_size


@pytest.mark.parametrize("name", ["copy", "copy-stream"])
def test_blanks_and_delimiters_are_not_counted_as_remembered(name):
    task = make_task(name)
    batch = task.batch(generator())
    symbols = batch.targets < task.alphabet
    answers = logits(batch.targets, task.outputs)
    answers[~symbols] = answers[~symbols].roll(1, -1)
    assert task.accuracy(answers, batch) == 1
    answers[symbols] = logits(torch.tensor(task.blank), task.outputs)
    assert task.accuracy(answers, batch) == 0


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_the_whole_is_the_mean_over_what_its_pieces_ask(name):
    task = make_task(name)
    batch = task.batch(generator())
    answers = torch.randn(task.steps, task.batch_size, task.outputs)
    total, count = 0.0, 0
    for piece in (slice(0, 7), slice(7, task.steps)):
        targets = batch.targets[piece]
        loss = task.loss(answers[piece], TaskBatch(batch.inputs[piece], targets, fresh=False))
        asked = int((targets != IGNORED).sum())
        assert asked > 0 or float(loss) == 0
        total, count = total + float(loss) * asked, count + asked
    assert total / count == pytest.approx(float(task.loss(answers, batch)), rel=1e-5)


def test_nothing_asked_has_no_accuracy():
    task = TemporalOrder()
    batch = task.batch(generator())
    piece = TaskBatch(batch.inputs[:5], batch.targets[:5], fresh=True)
    assert math.isnan(task.accuracy(torch.zeros(5, 32, 4), piece))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "copying",
            {},
            "task must be one of copy, copy-stream, adding, temporal-order, got 'copying'",
        ),
        (
            "adding",
            {"lag": 3},
            "the task adding has no option lag; it has batch_size, seed, length, marks",
        ),
        ("copy", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("copy", {"seed": -1}, "seed must be at least 0 and below 2**63, got -1"),
        ("copy", {"symbols": 0}, "symbols must be at least 1, got 0"),
        ("copy", {"alphabet": 1}, "alphabet must be at least 2, got 1"),
        (
            "copy",
            {"lag": 3, "symbols": 3},
            "lag must be more than symbols, 3: what is still being read cannot be asked for; got 3",
        ),
        ("copy-stream", {"shortest": 1}, "shortest must be at least 2, got 1"),
        ("copy-stream", {"longest": 9}, "longest must be at least shortest, 10, got 9"),
        ("copy-stream", {"steps": 0}, "steps must be at least 1, got 0"),
        ("copy-stream", {"alphabet": 0}, "alphabet must be at least 2, got 0"),
        ("adding", {"length": 3}, "length must be at least 4, got 3"),
        ("temporal-order", {"length": 9}, "length must be at least 10, got 9"),
        ("temporal-order", {"spread": -1}, "spread must be at least 0, got -1"),
    ],
)
def test_errors_name_what_is_there(name, options, message):
    with pytest.raises(ConfigError) as raised:
        make_task(name, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("name", TASKS)
def test_processes_share_a_batch_and_the_mean_of_its_loss(name):
    task = make_task(name, batch_size=5)
    batch = next(iter(task))
    answers = torch.rand(*batch.targets.shape, task.outputs)
    shares = [batch.of_process(rank, 3) for rank in range(3)]
    assert [s.inputs.shape[1] for s in shares] == [2, 2, 1]
    for rank, share in enumerate(shares):
        assert torch.equal(share.inputs, batch.inputs[:, rank::3])
    means = [task.loss(answers[:, r::3], s) * s.inputs.shape[1] / 5 for r, s in enumerate(shares)]
    torch.testing.assert_close(sum(means), task.loss(answers, batch))
