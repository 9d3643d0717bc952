"""What people do with torch.nn's recurrent modules, done with those and with ours.

Each of these is done twice; what comes out is the same, or it is refused by the same error.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

import bptt

NAMES = ["RNN", "GRU", "LSTM"]
T, B, I, H = 5, 3, 4, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last"),
]


class On:
    """What a scenario is given: a library's module, and the same inputs for both libraries."""

    def __init__(self, library, name):
        self.library, self.name = library, name
        self.draw = torch.Generator().manual_seed(0)

    def module(self, *args, **options):
        torch.manual_seed(3)
        options = {"dtype": torch.float64, **options}
        return getattr(self.library, self.name)(*(args or (I, H)), **options)

    def x(self, *shape):
        shape = shape or (T, B, I)
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64)

    def h(self, *shape, wide=H):
        first = self.x(*(shape or (1, B)), wide)
        return (first, self.x(*(shape or (1, B)), H)) if self.name == "LSTM" else first

    def packed(self, lengths=(2, 5, 4), sort=False):
        return pack_sequence([self.x(n, I) for n in lengths], enforce_sorted=sort)


def flat(*results):
    found = []
    for r in results:
        if isinstance(r, PackedSequence):
            found += [r.data, r.batch_sizes]
        elif isinstance(r, dict):
            found += flat(*r.items())
        elif isinstance(r, tuple | list):
            found += flat(*r)
        else:
            found.append(r)
    return found


DONE = {}


def done(scenario):
    DONE[scenario.__name__] = scenario
    return scenario


@done
def padded_and_packed_by_length(on):
    x, m = on.x(), on.module(I, H, 2, bidirectional=True)
    packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    y, state = m(packed)
    return pad_packed_sequence(y, total_length=7), state, unpack_sequence(y)


@done
def packed_in_any_order_with_a_state(on):
    return on.module()(on.packed(), on.h())


@done
def packed_of_another_dtype(on):
    return on.module().float()(on.packed().float()), on.module()(on.packed().float().double())


@done
def packed_batch_first(on):
    packed = pack_padded_sequence(on.x(B, T, I), [5, 4, 4], batch_first=True)
    y, state = on.module(batch_first=True)(packed)
    return pad_packed_sequence(y, batch_first=True), state


@done
def an_empty_batch(on):
    y, state = on.module()(on.x(T, 0, I))
    y.sum().backward()
    return y, state


@done
def a_single_step_and_a_single_sequence(on):
    m = on.module(I, H, 3)
    return m(on.x(1, B, I)), m(on.x(T, 1, I)), m(on.x(T, I)), m(on.x(1, I))


@done
def dropout_changed_afterwards(on):
    m, x, found = on.module(I, H, 2, dropout=0.3), on.x(), []
    for p in (0.0, 0.9, 1.0, 0.3):
        m.dropout = p
        torch.manual_seed(1)
        found.append(m(x))
    m.eval()
    return found, m(x)


@done
def weights_that_two_modules_share(on):
    m, other = on.module(), on.module()
    nn.init.normal_(other.weight_hh_l0)
    m.weight_hh_l0 = other.weight_hh_l0
    (m(on.x())[0].sum() + other(on.x())[0].sum()).backward()
    return m.weight_hh_l0.grad, m.weight_hh_l0 is other.weight_hh_l0


@done
def weights_written_in_place_and_anew(on):
    m, x = on.module(), on.x()
    before = m(x)
    with torch.no_grad():
        m.weight_hh_l0.mul_(0.5)
        m.bias_ih_l0.data = torch.ones_like(m.bias_ih_l0)
    middle = m(x)
    m.weight_ih_l0 = nn.Parameter(torch.ones_like(m.weight_ih_l0))
    return before, middle, m(x)


@done
def the_lists_of_weights(on):
    m = on.module(I, H, 2, bidirectional=True)
    m.flatten_parameters()
    names = [name for name, _ in m.named_parameters()]
    return names, m.all_weights, m._all_weights, m._flat_weights_names, m.training


@done
def frozen_parameters(on):
    m = on.module()
    m.weight_hh_l0.requires_grad_(False)
    m(on.x())[0].sum().backward()
    return [p.grad for p in m.parameters()]


@done
def a_state_carried_on_and_detached(on):
    m, x, state, found = on.module(I, H, 2), on.x(12, B, I), None, []
    for window in x.split(4):
        y, state = m(window, state)
        y.square().sum().backward()
        state = tuple(s.detach() for s in state) if on.name == "LSTM" else state.detach()
        found.append(state)
    return found, m.weight_hh_l1.grad


@done
def hooks_see_what_goes_in_and_comes_out(on):
    m, seen = on.module(), []
    m.register_forward_pre_hook(lambda _, args: seen.append(args[0].sum()))
    m.register_forward_hook(lambda _, args, out: (out[0] * 2, out[1]))
    m.register_full_backward_hook(lambda _, of_input, of_output: seen.append(of_output[0].sum()))
    x = on.x().requires_grad_()
    y, _ = m(x)
    y.sum().backward()
    return seen, y, x.grad


@done
def pruned(on):
    m, x = on.module(), on.x()
    prune.l1_unstructured(m, "weight_hh_l0", amount=0.4)
    y, _ = m(x)
    y.sum().backward()
    found = y, m.weight_hh_l0_orig.grad, m.weight_hh_l0_mask
    prune.remove(m, "weight_hh_l0")
    return found, m(x), sorted(m.state_dict())


@done
def called_with_other_parameters(on):
    m, x = on.module(), on.x()
    other = {name: torch.full_like(p, 0.1) for name, p in m.named_parameters()}
    return torch.func.functional_call(m, other, (x,)), m(x)


@done
def without_gradients(on):
    m, x = on.module(), on.x()
    with torch.no_grad():
        first = m(x)
    with torch.inference_mode():
        second = m(x)
    return first, first[0].requires_grad, [t.clone() for t in flat(second)]


@done
def clipped_and_stepped(on):
    m, x = on.module(I, H, 2), on.x()
    optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        m(x)[0].square().sum().backward()
        nn.utils.clip_grad_norm_(m.parameters(), 0.25)
        optimizer.step()
    return list(m.parameters())


@done
def a_vector_of_parameters(on):
    m = on.module()
    vector = nn.utils.parameters_to_vector(m.parameters())
    nn.utils.vector_to_parameters(vector * 2, m.parameters())
    return vector, m(on.x())


@done
def initialised_by_name(on):
    m = on.module()
    for name, p in m.named_parameters():
        nn.init.constant_(p, 0.2) if "bias" in name else nn.init.orthogonal_(p)
    again = m(on.x())
    torch.manual_seed(9)
    m.reset_parameters()
    return again, list(m.parameters())


@done
def loaded_by_assignment(on):
    m = on.module(device="meta")
    m.load_state_dict(on.module().state_dict(), assign=True)
    return m(on.x())


@done
def copies_and_pickles(on):
    m, x = on.module(I, H, 2), on.x()
    m(x)
    return [again(x) for again in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), copy.copy(m))]


@done
def memory_that_is_shared(on):
    m = on.module()
    m.share_memory()
    return m(on.x()), all(p.is_shared() for p in m.parameters())


@done
def a_module_among_others(on):
    layers = nn.ModuleDict({"a": on.module(), "b": nn.Sequential(on.module())})
    layers.apply(lambda m: m.eval())
    return sorted(layers.state_dict()), [type(m).__name__ for m in layers.modules()]


@done
def ensembles(on):
    models, x = [on.module() for _ in range(2)], on.x()
    params, _ = torch.func.stack_module_state(models)
    return {name: p.shape for name, p in params.items()}, models[1](x)


REFUSED = {
    "a state of a wrong width": lambda on: on.module()(on.x(), on.h(1, B, wide=H + 1)),
    "a state of too many layers": lambda on: on.module()(on.x(), on.h(2, B)),
    "a state of another batch": lambda on: on.module()(on.x(), on.h(1, B + 1)),
    "a state without a batch": lambda on: on.module()(on.x(), on.h(1)),
    "a packed input, another batch": lambda on: on.module()(on.packed(), on.h(1, 2)),
    "an input of another width": lambda on: on.module()(on.x(T, B, I + 1)),
    "a packed input of another width": lambda on: on.module(I + 1, H)(on.packed()),
    "no steps": lambda on: on.module()(on.x(0, B, I)),
    "one dimension": lambda on: on.module()(on.x(I)),
    "four dimensions": lambda on: on.module()(on.x(2, T, B, I)),
    "integers": lambda on: on.module()(torch.zeros(T, B, I, dtype=torch.int64)),
    "no layers": lambda on: on.module(I, H, 0),
    "layers below zero": lambda on: on.module(I, H, -1),
    "no inputs": lambda on: on.module(0, H),
    "no units": lambda on: on.module(I, 0),
    "a size that is no integer": lambda on: on.module(I, 2.5),
    "an input size that is no integer": lambda on: on.module(2.5, H),
    "a bias that is no bool": lambda on: on.module(bias=1),
    "batch_first that is no bool": lambda on: on.module(batch_first="yes"),
    "a dropout above one": lambda on: on.module(I, H, 2, dropout=1.1),
    "a dropout that is a bool": lambda on: on.module(I, H, 2, dropout=True),
    "a projection too wide": lambda on: on.module(proj_size=H),
    "a projection below zero": lambda on: on.module(proj_size=-1),
    "no such argument": lambda on: on.module(hidden=3),
    "no sizes": lambda on: getattr(on.library, on.name)(I),
    "a module on another device": lambda on: on.module(device="meta")(on.x()),
    "a state on another device": lambda on: on.module()(
        on.x(), tuple(s.to("meta") for s in on.h()) if on.name == "LSTM" else on.h().to("meta")
    ),
    "a state_dict of fewer layers": lambda on: on.module(I, H, 2).load_state_dict(
        on.module().state_dict()
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", DONE)
def test_the_same_comes_out(scenario, name):
    theirs, ours = (flat(DONE[scenario](On(library, name))) for library in (nn, bptt))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            near = {"rtol": 1e-10, "atol": 1e-10} if b.dtype == torch.float64 else {}
            torch.testing.assert_close(a, b, **near)
        else:
            assert a == b


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", REFUSED)
def test_the_same_is_refused(case, name):
    raised = []
    for library in (nn, bptt):
        with pytest.raises(Exception) as error:  # which one, is the question
            REFUSED[case](On(library, name))
        raised.append(error)
    theirs, ours = raised
    assert ours.type is theirs.type, f"{ours.value} | {theirs.value}"
