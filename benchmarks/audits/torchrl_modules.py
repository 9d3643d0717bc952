"""torchrl's LSTMModule and GRUModule: a rollout, and a loss on it in recurrent mode."""

from __future__ import annotations

import warnings

import torch
from environments import Numbered, episode, label
from table import told
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import Compose, GymWrapper, InitTracker, TransformedEnv
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

import bptt

STEPS = 12


def modules() -> dict[str, tuple[nn.Module, str]]:
    lstm = LSTMModule(input_size=5, hidden_size=8, in_key="observation", out_key="features")
    gru = GRUModule(
        input_size=5, hidden_size=8, in_keys=["observation", "state", "is_init"],
        out_keys=["features", ("next", "state")],
    )  # fmt: skip
    return {"LSTMModule": (lstm, "lstm"), "GRUModule": (gru, "gru")}


def audited(module: nn.Module, path: str, *, primer: bool, tracker: bool = True):
    transforms = [InitTracker()] if tracker else []
    transforms += [module.make_tensordict_primer()] if primer else []
    env = TransformedEnv(GymWrapper(Numbered()), Compose(*transforms))
    head = TensorDictModule(nn.Linear(8, 2), in_keys=["features"], out_keys=["logits"])
    sample = TensorDictModule(
        lambda logits: nn.functional.one_hot(logits.argmax(-1), 2),
        in_keys=["logits"], out_keys=["action"],
    )  # fmt: skip
    policy = TensorDictSequential(module, head, sample)

    def run() -> None:
        optimizer = torch.optim.Adam(policy.parameters())
        with torch.no_grad():
            rollout = env.rollout(STEPS, policy, break_when_any_done=False)
        for _ in range(2):
            with set_recurrent_mode(True):
                batch = policy(rollout.clone())
            loss = batch["logits"].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return bptt.audit(run, module, path, label=label, episodes=episode)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    for primer in (True, False):
        for name, (module, path) in modules().items():
            report = audited(module, path, primer=primer)
            told(
                "torchrl",
                f"{name}, {'with' if primer else 'without'} its primer: env.rollout, then "
                "recurrent mode",
                "the primer is needed for the state to be carried in a rollout",
                report, {"full within each episode": bptt.Full()},
            )  # fmt: skip


if __name__ == "__main__":
    main()
