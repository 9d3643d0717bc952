"""torchrl's DQNLoss on an LSTMModule in recurrent mode: what its target values are computed from.

1. The observations of the first episode are changed. The temporal-difference errors of the episodes
   after it change too: the values of the steps are computed episode by episode, those of the next
   observations, which the target needs, in one sequence.
2. If the batch begins with the last step of an episode, the target network starts from the state
   that the online network returned, with its graph: the loss's gradient goes through the target.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch
from environments import Numbered
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import Compose, GymWrapper, InitTracker, TransformedEnv
from torchrl.modules import LSTMModule, QValueModule, set_recurrent_mode
from torchrl.objectives import DQNLoss


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    module = LSTMModule(input_size=5, hidden_size=8, in_key="observation", out_key="embed")
    primer = module.make_tensordict_primer()
    env = TransformedEnv(GymWrapper(Numbered()), Compose(InitTracker(), primer))
    values = TensorDictModule(nn.Linear(8, 2), in_keys=["embed"], out_keys=["action_value"])
    policy = TensorDictSequential(module, values, QValueModule(spec=env.action_spec))
    loss = DQNLoss(policy, action_space=env.action_spec, delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    with torch.no_grad():
        data = env.rollout(12, policy, break_when_any_done=False)
    starts = data["is_init"].squeeze(-1)

    def errors(of):
        of = of.clone()[None]
        with set_recurrent_mode(True), torch.no_grad():
            loss(of)
        return of["td_error"].flatten()

    changed = data.clone()
    changed["observation"][:5, 3:] += 1
    changed["next", "observation"][:4, 3:] += 1
    print(f"torchrl {version('torchrl')}: DQNLoss")
    print("an episode starts at", starts.nonzero().flatten().tolist())
    print("the errors changed by", (errors(changed) - errors(data)).abs().numpy().round(4).tolist())

    heard = []

    def hear(_, args, output):
        final = output[1][0]
        if not heard and final.requires_grad:
            final.register_hook(
                lambda g: print("gradient at the final h:", g.abs().amax(-1).tolist())
            )
        heard.append(args[1][0].requires_grad)

    module.lstm.register_forward_hook(hear)
    with set_recurrent_mode(True):
        loss(data[4:].clone()[None])["loss"].backward()
    print("the initial state of each call has a graph:", heard)


if __name__ == "__main__":
    main()
