"""What a training is made of: the model, the optimizer, the reader of batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bptt._src.language_model.config import Config
from bptt._src.language_model.expected import check_memory, no_memory
from bptt._src.language_model.initialising import initialise
from bptt._src.language_model.model import LanguageModel
from bptt._src.language_model.monitor import STEPS
from bptt._src.ranks import Ranks
from bptt.credit import Credit
from bptt.data import PreparedText, Sentences, Streams


def make_model(config: Config, text: PreparedText, device: torch.device) -> LanguageModel:
    """Make the model, or refuse one for which there is too little memory."""
    # Weights, gradients, and the optimizer's state for each.
    copies = 4 if config.optimizer != "sgd" else 3 if config.momentum else 2
    check_memory(config, text.tokenizer.size, copies=copies)
    try:
        return initialised(LanguageModel(text.tokenizer, config)).to(device)
    except torch.OutOfMemoryError:  # on the device
        raise no_memory(config, text.tokenizer.size) from None


def initialised(model: LanguageModel) -> LanguageModel:
    """Draw the initial weights that the options ask for."""
    config = model.config
    if config.init_range is not None:
        for p in model.parameters():
            nn.init.uniform_(p, -config.init_range, config.init_range)
    initialise(model.recurrent, config.init, config.radius)
    return model


def make_optimizer(config: Config, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Make torch's optimizer for a configuration, in the fused variant."""
    options: dict[str, Any] = {
        "lr": config.base_rate,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **options)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **options)


def make_reader(
    config: Config, text: PreparedText, credit: Credit, ranks: Ranks
) -> Streams | Sentences:
    """Make the reader of batches for a configuration, with windows that suit the credit."""
    who = ranks._asdict()
    if config.reading != "stream":
        return Sentences(text.train, batch_size=config.batch_size, seed=config.seed, **who)
    return Streams(
        text.train,
        batch_size=config.batch_size,
        steps=config.steps or (config.is_carried and credit.window) or STEPS,
        sampling=config.sampling,
        epoch_start=config.epoch_start,
        seed=config.seed,
        **who,
    )
