"""torchrl's PPO with bptt.LSTM: the same policy, without cutting rollouts where episodes begin."""

import time

import torch
from tensordict.nn import ProbabilisticTensorDictModule as Draw
from tensordict.nn import ProbabilisticTensorDictSequential as Sequential
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, InitTracker, SerialEnv, TransformedEnv
from torchrl.modules import LSTMModule, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss

import bptt

B, T, UPDATES = 4, 64, 8


class Resetting(LSTMModule):
    def forward(self, data):
        if not self.recurrent_mode:  # single steps, while acting
            return super().forward(data)
        x, *state, starts = (data[key] for key in self.in_keys)  # [B, T, ...]
        first = tuple(s[:, 0].transpose(0, 1).contiguous() for s in state)
        data[self.out_keys[0]], _ = self.lstm(x, first, resets=starts.squeeze(-1))
        return data


def environment():
    return TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), InitTracker())


def learned(module, library):
    torch.manual_seed(0)
    lstm = module(lstm=library.LSTM(4, 32, batch_first=True), in_key="observation", out_key="y")
    how = {"distribution_class": torch.distributions.Categorical, "return_log_prob": True}
    head, draw = Module(nn.Linear(32, 2), ["y"], ["logits"]), Draw(["logits"], ["action"], **how)
    actor = Sequential(lstm, head, draw)
    loss_of = ClipPPOLoss(actor, Module(nn.Linear(4, 1), ["observation"], ["state_value"]))
    loss_of.make_value_estimator()
    optimizer, seconds = torch.optim.Adam(loss_of.parameters(), lr=3e-3), 0
    env = TransformedEnv(SerialEnv(B, environment), lstm.make_tensordict_primer())
    env.set_seed(0)
    for data in Collector(env, actor, frames_per_batch=B * T, total_frames=UPDATES * B * T):
        assert data["is_init"][:, 1:].any()
        began = time.perf_counter()
        with set_recurrent_mode(True):
            loss_of.value_estimator(data)
            for _ in range(4):
                optimizer.zero_grad()
                sum(v for k, v in loss_of(data).items() if k.startswith("loss_")).backward()
                optimizer.step()
        seconds += time.perf_counter() - began
    return [p.detach() for p in loss_of.parameters()], seconds


(theirs, slow), (ours, quick) = learned(LSTMModule, nn), learned(Resetting, bptt)
torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
print(f"the same policy: updates take {quick:.2f} s, with torchrl's batches {slow:.2f} s")
