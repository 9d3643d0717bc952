"""Any recurrent module under any plan, against the definition of what a plan means."""

import numpy as np
import pytest
import torch
from torch import nn
from unrolled import KINDS, B, H, I, T, case_of, given_inputs, make, noise, prepared

import bptt
from bptt import Full, Plan, Randomized, Recompute, Store, Truncated
from bptt.credit import Block

FADING = np.array([0.5, 1, 0.8, 1, 0.7, 0.9, 1.1])
EACH = np.array([[1, 0.5], [1, 1], [0, 1.3], [0.9, 1], [1, 0], [1, 1], [0.7, 1]])
UNEVEN = [Block(0, 2, 0), Block(2, 3, 2), Block(3, 5, 0), Block(5, 7, 4)]

CREDITS = {
    "full": Full(),
    **{f"pieces {k}": Truncated(k) for k in (1, 3, T, T + 2)},
    **{
        f"windows {every} {reach}": Truncated(every=every, reach=reach)
        for every, reach in (
            *((1, 1), (1, 2), (1, 3), (1, T), (2, 3), (2, 5)),
            *((3, 4), (3, T), (4, 6), (5, 7), (2, 20)),
        )
    },
    "randomized": Randomized(2.5),
    "randomized constant": Randomized(2, tail="constant", shared=True),
    "fading": Plan(T, FADING),
    "own blocks": Plan(T, blocks=UNEVEN),
    "fading blocks": Plan(T, FADING, UNEVEN),
}
BY_SEQUENCE = {
    "randomized": Randomized(2.5),
    "own": Plan(T, EACH),
    "own blocks": Plan(T, EACH, UNEVEN),
    "windows": Plan(T, EACH, Plan.windows(T, every=2, reach=5).blocks),
}
MEMORIES = [
    None,
    Store(),
    Store(segment=1),
    Recompute(1, segment=1),
    Recompute(2, segment=1),
    Recompute(3, segment=2),
    Recompute(2),
    Recompute("1MB"),
]
GROUPS = [[3, 0], [5, 1], [4, 7], [6, 2]]  # of memories that a quick round tries


def planned(credit, batch=1):
    """A plan, drawn anew and always the same."""
    return credit.plan(T, batch, torch.Generator().manual_seed(4))


def assert_gradients(got, want, tolerance=1e-10):
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        a = torch.zeros_like(b) if a is None else a
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=f"gradient {n}")


# ------------------------------------------------------------------ against the definition


@pytest.mark.parametrize("kind", KINDS)
def test_the_problems_carry_a_signal(kind):
    case = case_of(kind)
    full = case.expected(Plan(T))
    for other in (planned(Truncated(3)), Plan.windows(T, every=2, reach=5), Plan(T, FADING)):
        for n, (a, b) in enumerate(zip(full, case.expected(other), strict=True)):
            if a.any():  # all but an unused parameter
                assert float((a - b).abs().max()) > 1e-3, n
    assert sum(not bool(a.any()) for a in full) == (1 if kind == "nested" else 0)


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_weighted_sum_of_all_terms(kind, credit):
    case = case_of(kind)
    plan = planned(CREDITS[credit])
    frozen = [n for n, p in enumerate(case.module.parameters()) if not p.requires_grad]
    want = case.expected(plan)
    thorough = kind == "nested"
    rotation = (KINDS.index(kind) + [*CREDITS].index(credit)) % len(GROUPS)
    for n in range(len(MEMORIES)) if thorough else GROUPS[rotation]:
        got = case.gradients(plan, MEMORIES[n])
        for k in frozen:
            assert got[k] is None
            got[k] = want[k]
        assert_gradients(got, want)


@pytest.mark.parametrize("credit", BY_SEQUENCE)
@pytest.mark.parametrize("kind", ["bptt-LSTM-1-projected", "nn-GRU-2-batch_first", "nested"])
def test_each_sequence_may_have_weights_of_its_own(kind, credit):
    case = case_of(kind)
    plan = planned(BY_SEQUENCE[credit], B)
    want = case.expected(plan)
    for memory in MEMORIES[:: 2 if kind.startswith("bptt") else 1]:
        got = case.gradients(plan, memory, per_sequence=True)
        got = [w if p is None else p for p, w in zip(got, want, strict=True)]
        assert_gradients(got, want)


def test_only_modules_that_take_carry_are_cut_by_sequence_of_themselves():
    asked = []

    class Own(bptt.Credit):
        def plan(self, steps, batch=1, generator=None):
            asked.append(batch)
            return Plan(steps)

    for module, options in ((bptt.GRU(I, H), {}), (nn.GRU(I, H), {}), (nn.GRU(I, H), {"per": 1})):
        for memory in (None, Store()):
            per = {"per_sequence": True} if options else {}
            bptt.unroll(module, given_inputs().float(), credit=Own(), memory=memory, **per)
    assert asked == [B, B, 1, 1, B, B]
    bptt.unroll(bptt.GRU(I, H), given_inputs().float(), credit=Own(), per_sequence=False)
    assert asked[-1] == 1


@pytest.mark.parametrize("memory", [None, Store(segment=2), Recompute(2)], ids=str)
@pytest.mark.parametrize("kind", ["bptt-GRU-2-batch_first", "nn-GRU-2-batch_first"])
def test_the_generator_draws_what_is_random(kind, memory):
    case = case_of(kind)
    got = case.gradients(
        Randomized(2), memory, generator=torch.Generator().manual_seed(4), per_sequence=True
    )
    assert_gradients(got, case.expected(planned(Randomized(2), B)))


# ------------------------------------------------------------------------ resets and streams

STARTS = torch.tensor([0, 0, 1, 0, 0, 1, 0]).bool()
STARTS_EACH = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 0], [1, 1], [0, 0], [0, 1]]).bool()


@pytest.mark.parametrize("resets", [STARTS, STARTS_EACH], ids=["all", "each"])
@pytest.mark.parametrize("credit", ["full", "pieces 3", "windows 2 5", "fading blocks"])
@pytest.mark.parametrize(
    "kind", ["bptt-RNN-1", "bptt-LSTM-1-projected", "nn-LSTM-2-projected", "nested"]
)
def test_resets_zero_the_state_and_stop_the_gradient(kind, credit, resets):
    case = case_of(kind)
    plan = planned(CREDITS[credit])
    want = case.expected(plan, resets)
    without = case.expected(plan)
    assert float((want[0] - without[0]).abs().max()) > 1e-3
    for memory in MEMORIES[:: 3 if kind.startswith("bptt") else 2]:
        got = case.gradients(plan, memory, resets=resets)
        got = [w if p is None else p for p, w in zip(got, want, strict=True)]
        assert_gradients(got, want)


@pytest.mark.parametrize("memory", [None, Store(segment=1), Recompute(1)], ids=str)
def test_resets_and_cuts_stop_a_gradient_that_is_not_finite(memory):
    def explode(x, h):
        ys = []
        for x_t in x:
            h = torch.sqrt(h * h) + x_t
            ys.append(h)
        return torch.stack(ys), h

    x = torch.tensor([-1.0, 0, 0]).view(3, 1, 1)  # the state comes to 0, where the gradient is NaN
    at = torch.tensor([False, True, False])
    cut = Plan(3, [1, 0, 1])
    stops = [{"resets": at}, {"resets": at[:, None]}, {"credit": cut}]
    for options in [{}, *stops, {"credit": Plan(3, cut.carry, [Block(0, 3, 0)])}]:
        h = torch.ones(1, 1, requires_grad=True)
        y, _ = bptt.unroll(explode, x, h, memory=memory, state_batch_dim=0, **options)
        (g,) = torch.autograd.grad(y[2].sum(), h, allow_unused=True)
        assert bool(g is None or not g.any()) == bool(options)
        assert options or g.isnan().all()


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("kind", ["nn-LSTM-2-projected", "bptt-GRU-2-batch_first", "LSTMCell"])
def test_a_stream_in_two_calls(kind, memory):
    """The state goes on, with its graph: one sequence. Detached: a cut."""
    case = case_of(kind)
    want = case.expected(Plan(T)), case.expected(Plan(T, np.arange(T) != 4))
    for detach in (False, True):
        case.module.zero_grad()
        x, s, leaves = case.leaves()
        first, second = x.split([4, T - 4], case.time)
        y1, s1 = bptt.unroll(case.module, first, s, memory=memory)
        if detach:
            s1 = tuple(v.detach() for v in s1) if isinstance(s1, tuple) else s1.detach()
        y2, s2 = bptt.unroll(case.module, second, s1, memory=memory)
        case.losses(torch.cat([y1, y2], case.time), s2).sum().backward()
        got = [p.grad for p in (*case.module.parameters(), *leaves)]
        assert_gradients(got, want[detach])


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("credit", ["full", "pieces 3", "windows 2 5"])
def test_without_a_state_the_module_knows_how_to_begin(credit, memory):
    for kind in ("nn-LSTM-2-projected", "bptt-RNN-1", "LSTMCell"):
        case = make(kind)
        zeros = torch.utils._pytree.tree_map(torch.zeros_like, case.state)
        case.state = zeros
        want = case.gradients(CREDITS[credit], None)
        want = want[: len(list(case.module.parameters())) + 1]
        case.state = None
        got = case.gradients(CREDITS[credit], memory)
        assert_gradients(got, want)


def test_a_loss_of_the_final_state_alone():
    case = case_of("LSTMCell")
    for memory in MEMORIES:
        x, s, leaves = case.leaves()
        _, (h, c) = bptt.unroll(
            case.module, x, s, credit=Truncated(every=2, reach=3), memory=memory
        )
        got = torch.autograd.grad((h * c).sum(), [*leaves])
        assert [bool(g.any()) for g in got[0]] == [False] * 5 + [True] * 2
        assert not got[1].any()


# --------------------------------------------------- x_t = w · x_{t-1}, and the usual recipe


class Line(nn.Module):
    """x_t = w · x_{t-1}; nothing is read."""

    def __init__(self, w=0.2):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, _, x):
        return (self.w * x,) * 2


def recipe(line, x, steps, reach):
    """BPTT(reach; 1) as it circulates: detach states, keep graphs, go back through the list.

    The gradients of the states are never cleared, so what an earlier loss left is counted again.
    Returns w's gradient after each step's loss, which is the state itself.
    """
    states, found = [(None, x)], []
    for _ in range(steps):
        before = states[-1][1].detach().requires_grad_()
        after = line(None, before)[1]
        states.append((before, after))
        while len(states) > reach:
            del states[0]
        line.zero_grad()
        after.backward(retain_graph=True)
        for i in range(reach - 1):
            if states[-i - 2][0] is None:
                break
            states[-i - 2][1].backward(states[-i - 1][0].grad, retain_graph=True)
        found.append(float(line.w.grad))
    return found


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_recipe_that_circulates_gives_288_where_108_is_right(memory):
    """Three steps from x_0 = 0.9 with w = 0.2, every=1, reach ≥ 3, the loss x_3 = w³ x_0."""
    x0 = torch.tensor([0.9], dtype=torch.float64)
    assert recipe(Line(), x0, 3, 4)[-1] == pytest.approx(0.288)
    for credit in (Truncated(every=1, reach=3), Full()):
        line = bptt.Stepwise(Line())
        y, _ = bptt.unroll(line, torch.zeros(3, 1), x0, credit=credit, memory=memory)
        y[2].sum().backward()
        assert float(line.cell.w.grad) == pytest.approx(0.108, abs=1e-15)
        assert float(line.cell.w.grad) == pytest.approx(3 * 0.2**2 * 0.9, abs=1e-15)


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_an_update_between_windows(memory):
    """BPTT(5; 2) along a stream: the window is run again, under the current parameters.

    The recipe's kept graphs cannot do it: an optimizer changes what they have saved.
    """
    every, reach, T = 2, 5, 12
    x = torch.randn(T, B, I, dtype=torch.float64)

    def train(run):
        network = prepared(bptt.Stepwise(nn.LSTMCell(I, H)))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        states = [(noise(B, H), noise(B, H))]  # before each block, as they were when it came
        for end in range(every, T + every, every):
            since = max(0, end - reach)
            # from the last stored state before the window; what lies before `since` gives nothing
            n = since // every
            optimizer.zero_grad()
            run(network, x[n * every : end], states[n], since - n * every)
            optimizer.step()
            with torch.no_grad():
                block = x[end - every : end]
                states.append(bptt.unroll(network, block, states[-1])[1])
        return [p.detach().clone() for p in network.parameters()]

    def ours(network, x, state, lead):
        steps = len(x)
        blocks = [Block(0, steps - every, 0)] if steps > every else []
        plan = Plan(steps, blocks=[*blocks, Block(steps - every, steps, lead)])
        y, _ = bptt.unroll(network, x, state, credit=plan, memory=memory)
        y[-every:].square().sum().backward()

    def fresh(network, x, state, lead):
        with torch.no_grad():
            for x_t in x[:lead]:
                state = network.cell(x_t, state)
        loss = 0
        for t, x_t in enumerate(x[lead:], lead):
            state = network.cell(x_t, state)
            loss = loss + (state[0].square().sum() if t >= len(x) - every else 0)
        loss.backward()

    assert_gradients(train(ours), train(fresh), 1e-12)


# ----------------------------------------------------------------- what is called, and how


class Noted(nn.Module):
    """Notes the pieces that it is called with."""

    def __init__(self, module):
        super().__init__()
        self.module, self.pieces = module, []

    def forward(self, x, s):
        self.pieces.append(len(x))
        return self.module(x, s)


@pytest.mark.parametrize(
    ("credit", "pieces"),
    [
        (None, [7]),
        (Truncated(3), [3, 3, 1]),
        (Plan(7, FADING), [2, 2, 1, 1, 1]),
        (Plan(7, EACH), [2, 1, 1, 2, 1]),
        (Truncated(every=3, reach=3), [3, 3, 1]),
    ],
    ids=str,
)
def test_the_module_is_called_in_as_few_pieces_as_there_are_cuts(credit, pieces):
    module = Noted(nn.GRU(I, H).double())
    bptt.unroll(module, given_inputs(), torch.zeros(1, B, H).double(), credit=credit)
    assert module.pieces == pieces


def test_the_whole_of_the_inputs_is_handed_on_as_it_is():
    seen = []

    def module(x, s):
        seen.append(x)
        return x, s

    x = given_inputs()
    bptt.unroll(module, x)
    assert seen[0] is x


def test_stepwise_is_what_the_cells_do():
    cell = nn.LSTMCell(I, H)
    x, state = torch.randn(T, B, I), (torch.randn(B, H), torch.randn(B, H))
    y, final = bptt.Stepwise(cell)(x, state)
    for t in range(T):
        state = cell(x[t], state)
        assert torch.equal(y[t], state[0])
    assert torch.equal(final[1], state[1])
    y, final = bptt.Stepwise(nn.GRUCell(I, H))(x)
    assert torch.equal(y[-1], final)


@pytest.mark.parametrize("memory", [None, Store(segment=2), Recompute(2)], ids=str)
def test_outputs_of_any_kind_come_back_as_they_are(memory):
    case = case_of("nested")
    want, final = case.module(case.inputs, case.state)
    got, end = bptt.unroll(case.module, case.inputs, case.state, credit=Truncated(3), memory=memory)
    assert torch.equal(got["y"], want["y"])
    assert got["none"] is None
    assert got["rest"][2] == "word"
    assert torch.equal(got["rest"][1], want["rest"][1])
    assert got["rest"][1].dtype == torch.int64
    assert torch.equal(end["count"], final["count"])
    assert end["name"] == "x"
    assert torch.equal(end["memory"][0], final["memory"][0])


@pytest.mark.parametrize("memory", [None, Store(segment=2), Recompute(2)], ids=str)
@pytest.mark.parametrize("family", [bptt, nn])
def test_unbatched_inputs_of_a_module_with_batch_first(family, memory):
    """torch.nn takes [T, I] whatever batch_first says; its first dimension is time."""
    gru = family.GRU(I, H, batch_first=True)
    x = torch.randn(I + 4, I)
    y, h = bptt.unroll(gru, x, credit=Truncated(2), memory=memory)
    want, last = gru(x)
    assert torch.allclose(y, want)
    assert torch.allclose(h, last)


@pytest.mark.parametrize("memory", [None, Store(), Recompute(1, segment=1)], ids=str)
def test_inputs_of_whole_numbers(memory):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.rnn = nn.Embedding(5, I, sparse=sparse), nn.GRU(I, H)

        def forward(self, words, s):
            return self.rnn(self.table(words), s)

    words = torch.randint(5, (T, B))
    for sparse in (False, True):
        torch.manual_seed(1)
        module = Words().double()
        want = module(words, None)[0].square().sum()
        want = torch.autograd.grad(want, list(module.parameters()))
        y, _ = bptt.unroll(module, words, memory=memory)
        y.square().sum().backward()
        assert module.table.weight.grad.is_sparse == sparse
        got = [p.grad.to_dense() for p in module.parameters()]
        assert_gradients(got, [g.to_dense() for g in want])


def test_complex_numbers():
    W = (0.4 * torch.randn(3, 3, dtype=torch.complex128)).requires_grad_()

    def module(x, s):
        ys = []
        for x_t in x:
            s = torch.tanh(s @ W) + x_t
            ys.append(s)
        return torch.stack(ys), s

    x, s = torch.randn(2, T, B, 3, dtype=torch.complex128)
    found = []
    for memory in MEMORIES:
        y, _ = bptt.unroll(module, x, s[0], credit=Plan(T, FADING), memory=memory)
        found += torch.autograd.grad(y.abs().square().sum(), W)
    for g in found:
        assert_gradients([g], [found[0]])
    full = torch.autograd.grad(module(x, s[0])[0].abs().square().sum(), W)[0]
    assert float((full - found[0]).abs().max()) > 1e-3


# ----------------------------------------------------------------------------------- errors


def refused(match, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=match):
        bptt.unroll(*arguments, **options)


def test_a_bidirectional_module_is_not_run_in_pieces():
    x = torch.randn(T, B, I)
    for family in (bptt, nn):
        module = family.GRU(I, H, bidirectional=True)
        bptt.unroll(module, x)
        refused("bidirectional.*memory=None", module, x, memory=Store())
    refused(
        "bidirectional.*credit=bptt.Full", nn.GRU(I, H, bidirectional=True), x, credit=Truncated(3)
    )
    bptt.unroll(bptt.GRU(I, H, bidirectional=True), x, credit=Truncated(3))


def test_packed_sequences_are_for_whole_modules():
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(T, B, I), [T, 4])
    refused("PackedSequence.*padded.*memory=None", nn.GRU(I, H), packed)
    for memory in (Store(), Store(segment=T), Recompute(2)):
        refused("PackedSequence.*padded.*memory=None", bptt.GRU(I, H), packed, memory=memory)
    y, _ = bptt.unroll(bptt.GRU(I, H), packed, credit=Truncated(every=2, reach=4))
    assert isinstance(y, nn.utils.rnn.PackedSequence)


@pytest.mark.parametrize(
    "resets",
    [torch.zeros(T), torch.zeros(T - 1).bool(), torch.zeros(B, T).bool(), torch.zeros(T, B, 1) > 0],
    ids=lambda r: str(tuple(r.shape)),
)
def test_resets_of_another_kind(resets):
    match = r"expected resets of shape \(7,\) or \(7, 2\).*got \(|resets must be bool, got torch"
    for memory in (None, Store()):
        refused(match, nn.GRU(I, H), torch.randn(T, B, I), resets=resets, memory=memory)


@pytest.mark.parametrize("memory", [None, Store(segment=1), Recompute(1)], ids=str)
def test_a_state_whose_batch_is_elsewhere(memory):
    x, match = (
        torch.randn(T, B, I),
        r"\(1, 2, 4\), where dimension 0 .* batch of 2.*state_batch_dim",
    )
    gru, h = nn.GRU(I, H), torch.zeros(1, B, H)
    options = {"state_batch_dim": 0, "memory": memory}
    refused(match, gru, x, h, resets=STARTS_EACH, **options)
    refused(match, gru, x, h, credit=Plan(T, EACH), **options)
    match = r"\(2,\), where dimension 1"
    refused(match, lambda x, s: (x, s), x, torch.zeros(B), resets=STARTS_EACH, memory=memory)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((torch.zeros(3, B), torch.zeros(4, B)), r"\(3, 2\), \(4, 2\)"),
        (torch.zeros(0, B), r"\(0, 2\)"),
        (torch.zeros(()), r"\(\)"),
        ((), "no tensor"),
        ({"x": "word"}, "no tensor"),
    ],
    ids=str,
)
def test_inputs_without_a_common_length(inputs, said):
    refused(
        rf"expected inputs \[T, B, ...\].*at least one; got {said}", lambda x, s: (x, s), inputs
    )
    refused(
        r"expected inputs \[B, T, ...\]",
        lambda x, s: (x, s),
        torch.zeros(2, 0, 3),
        batch_first=True,
    )


@pytest.mark.parametrize("memory", [None, Store(segment=1), Recompute(1)], ids=str)
def test_outputs_without_time(memory):
    gru, h, x = nn.GRU(I, H), torch.zeros(1, B, H), torch.randn(T, B, I)

    def last(x, s):
        y, s = gru(x, s)
        return y[-1], s

    def last_kept(x, s):
        y, s = gru(x, s)
        return y[-1:], s

    match = r"output for 3 steps is \(2, 4\); dimension 0 must be time"
    refused(
        match if memory is None else "dimension 0", last, x, h, credit=Truncated(3), memory=memory
    )
    if memory is None or memory.segment != 1:
        refused("dimension 0 must be time", last_kept, x, h, credit=Truncated(3), memory=memory)
    uneven = Plan(T, [1, 0, 1, 1, 0, 1, 1])  # whose first piece is one step
    refused(
        r"3 steps is \(1, 2, 4\)",
        last_kept,
        x,
        h,
        credit=uneven,
        memory=memory and Store(segment=7),
    )


def test_batch_first_that_contradicts_the_module():
    x = torch.randn(T, T, I)
    match = "batch_first=True was given, .* batch_first=False"
    for module in (nn.GRU(I, H), bptt.GRU(I, H), bptt.Stepwise(nn.GRUCell(I, H))):
        refused(match, module, x, batch_first=True)
        bptt.unroll(module, x, batch_first=False)


def test_a_plan_for_another_length():
    refused("5 steps, got 7", nn.GRU(I, H), given_inputs(), credit=Plan(5))

    class Wrong(bptt.Credit):
        def plan(self, steps, batch=1, generator=None):
            return Plan(steps + more, carry)

    for case in ((1, None), (0, np.ones((T, 3)))):
        more, carry = case
        match = rf"planned for {T + more} steps and .*, the inputs have 7 steps and a batch of 2"
        refused(match, nn.GRU(I, H).double(), given_inputs(), credit=Wrong())


@pytest.mark.parametrize("run", [bptt.unroll, bptt.gradient_flow])
@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_cell_is_refused_and_what_to_do_is_said(run, cell):
    with pytest.raises(TypeError, match=rf"got a {cell.__name__}, .*bptt\.Stepwise\(cell\)"):
        run(cell(3, 4), torch.randn(5, 2, 3))
