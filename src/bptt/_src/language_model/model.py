"""The model: embedding, recurrent layers, readout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bptt import Stream, unroll
from bptt._src.dropout import dropout
from bptt._src.language_model.config import Config
from bptt._src.language_model.elsewhere import as_onnx, in_torch
from bptt._src.language_model.evaluation import evaluate
from bptt._src.language_model.readout import AdaptiveReadout, loss_of
from bptt._src.language_model.sampling import sample_stream
from bptt._src.language_model.score import Score, warn_of_unknown
from bptt._src.networks import make_network
from bptt.credit import as_credit
from bptt.data import Tokenizer, encode_text
from bptt.errors import ConfigError, spelled
from bptt.memory import Memory


class _Dropout(nn.Dropout):
    """torch.nn's, except that in training a sequence's masks do not depend on its process."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def _in_float32(dtype: torch.dtype, state: tuple[Tensor, ...], is_packed: bool) -> Any:
    """The dtypes of the recurrent layers' states under autocast."""
    return [torch.float32] * len(state)


class LanguageModel(nn.Module):
    """A recurrent language model: p(next token | all tokens before it).

    Args:
        tokenizer: turns text into tokens; its size is the vocabulary size V.
        config: the cell, the sizes of the layers, dropout, zoneout, and whether weights are tied.

    Load a trained one with :meth:`load`:

    >>> model = bptt.LanguageModel.load("runs/book")              # doctest: +SKIP
    >>> model.sample("Once upon a", length=50, temperature=0.8)    # doctest: +SKIP
    >>> model.score("Once upon a time").perplexity                 # doctest: +SKIP
    """

    takes_carry = takes_credit = True
    """Tells :func:`bptt.unroll` that the module accepts plans itself."""

    def __init__(self, tokenizer: Tokenizer, config: Config) -> None:
        super().__init__()
        self.tokenizer, self.config = tokenizer, config
        V, E, H = tokenizer.size, config.embedding_size, config.hidden
        self.embedding = nn.Embedding(V, E)
        options: dict[str, Any] = {"num_layers": config.layers, "zoneout": config.zoneout}
        if config.layers > 1:
            options["dropout"] = config.dropout
        self.recurrent = make_network(
            config.cell, E, H, nonlinearity=config.nonlinearity, **options
        )
        # Under autocast, too: torch.nn's round the state that one window hands to the next.
        self.recurrent._under_autocast = _in_float32  # type: ignore[method-assign]
        self.readout = AdaptiveReadout(H, V) if config.softmax == "adaptive" else nn.Linear(H, V)
        self.dropout = _Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: U(-0.1, 0.1) for embedding and readout, as in torch.nn for the rest.

        The untrained loss of a full softmax is then close to ln V, that of a uniform guess.
        """
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for name, p in self.readout.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.uniform_(p, -0.1, 0.1)
        self.recurrent.reset_parameters()
        if self.config.tied:
            self.readout.weight = self.embedding.weight

    def forward(
        self,
        tokens: Int[Tensor, "time batch"],
        state: Any = None,
        *,
        targets: Int[Tensor, "time batch"] | None = None,
        reduction: str = "mean",
        **how: Any,
    ) -> tuple[Tensor, Any]:
        """Predict each next token, or compute the loss of such predictions.

        The loss is that of :func:`bptt.losses.linear_cross_entropy`, which stores no logits. It
        is computed in here, so that the model can be wrapped, as by DistributedDataParallel, which
        sees calls of the wrapper alone.

        Args:
            tokens: token numbers, [T, B].
            state: the recurrent layers' state, as for :class:`bptt.LSTM` and the others; or a
                :class:`bptt.Stream`, to go along it by a window. The gradient then reaches back
                beyond the window if the credit does.
            targets: the token after each, [T, B]; ``bptt.data.IGNORED`` where there is none.
            reduction: what becomes of the losses of the targets: their ``"mean"`` or ``"sum"``, or
                ``"none"``: they stay [T, B].
            how: how the gradient goes back, as for :meth:`hidden`; along a stream also
                ``reach_back``, the number of steps before the window that are run again and that
                all its losses reach: the credit's ``history`` by default.

        Returns:
            The logits of the next token, [T, B, V], by an adaptive softmax the logarithms of the
            probabilities; or with ``targets`` the loss in nats; and the
            state after the last step, or the stream there.

        Raises:
            bptt.errors.ConfigError: the credit reaches back beyond the window, which is longer than
                the block of losses that it is for.

        >>> import torch, bptt
        >>> from bptt.language_model import Config
        >>> model = bptt.LanguageModel(bptt.data.Tokenizer.train(["abc"], level="char"), Config())
        >>> tokens, stream = torch.randint(3, (13, 2)), bptt.Stream()
        >>> for x, y in bptt.data.streams(tokens.flatten(), batch=2, steps=4):
        ...     loss, stream = model(x, stream, targets=y, credit="truncated:every=4,reach=6")
        ...     loss.backward()
        """
        if isinstance(state, Stream):
            h, state = self._along(tokens, state, **how)
        else:
            h, state = self.hidden(tokens, state, **how)
        if targets is None:
            return self.readout(h), state
        return loss_of(self.readout, h, targets, reduction=reduction), state

    def _along(
        self,
        tokens: Tensor,
        stream: Stream,
        *,
        credit: Any = None,
        reach_back: int | None = None,
        resets: Tensor | None = None,
        **how: Any,
    ) -> tuple[Tensor, Stream]:
        """Compute the readout's input in a window of a stream, and the stream after it."""
        if reach_back is None and credit is not None:
            credit = as_credit(credit)
            reach_back = stream.reach_back(credit, len(tokens))
        within = None if reach_back else credit  # what is run again is reached by all losses

        def run(x: Tensor, state: Any, at: Tensor | None) -> tuple[Tensor, Any]:
            return self.hidden(x, state, credit=within, resets=at, **how)

        return stream.through(run, tokens, reach_back or 0, resets=resets)

    def hidden(
        self,
        tokens: Int[Tensor, "time batch"],
        state: Any = None,
        *,
        memory: Memory | None = None,
        **how: Any,
    ) -> tuple[Float[Tensor, "time batch hidden"], Any]:
        """Compute the readout's input, [T, B, H], and the state after the last step.

        Args:
            tokens: token numbers, [T, B].
            state: the initial state, as for :meth:`forward`.
            memory: what the backward pass keeps of the recurrent layers, as for
                :func:`bptt.unroll`; everything by default.
            how: ``credit``, ``carry``, ``resets``, ``generator``, as for :class:`bptt.LSTM`.
        """
        x = self.dropout(self.embedding(tokens))
        if memory is None:
            h, state = self.recurrent(x, state, **how)
        else:
            h, state = unroll(self.recurrent, x, state, memory=memory, **how)
        return self.dropout(h), state

    @classmethod
    def load(
        cls, run: str | Path, *, device: str = "cpu", allow_code: bool = False
    ) -> LanguageModel:
        """Load the best model of a run, ready to evaluate and sample.

        Args:
            run: the run's directory.
            device: the device to load it to.
            allow_code: whether the run may name a cell ``module.CELL`` whose module is not imported
                yet, and has to be, which runs its code.

        Raises:
            bptt.errors.CheckpointError: there is no usable run.
            bptt.errors.ConfigError: its cell cannot be imported, or is not allowed to.
        """
        from bptt._src.language_model.run import Run

        return Run(Path(run)).load_model(device, allow_code=allow_code)

    def sample(
        self,
        prompt: str = "",
        *,
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Continue a prompt; the returned text begins with it.

        Args:
            prompt: the text that the model reads first.
            length: number of tokens to add.
            temperature: divisor of the logits; 0 always takes the likeliest token.
            top_k: draw only from the k likeliest tokens.
            top_p: draw only from the likeliest tokens whose probabilities sum to p.
            seed: seed of the draws; None uses torch's global generator.

        Raises:
            bptt.errors.ConfigError: an option is out of range.
        """
        return "".join(
            self.sample_stream(
                prompt,
                length=length,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        )

    def sample_stream(self, prompt: str = "", **options: Any) -> Iterator[str]:
        """Sample as :meth:`sample` does, but yield the text piece by piece as it is drawn."""
        return sample_stream(self, prompt, **options)

    def to_torch(self) -> nn.Module:
        """Copy the model into plain modules of torch.nn.

        Returns:
            A module with an :class:`torch.nn.Embedding`, an :class:`torch.nn.RNN`, ``GRU`` or
            ``LSTM``, a :class:`torch.nn.Linear` and dropout; its ``state_dict`` is this one's, and
            ``forward(tokens, state)`` gives the same logits and state.

        Raises:
            bptt.errors.ConfigError: torch.nn has no such cell: a sigmoid RNN, an MGU or an LSTM
                with peepholes; nor any with zoneout.

        >>> import bptt
        >>> from bptt.language_model import Config
        >>> model = bptt.LanguageModel(bptt.data.Tokenizer.train(["abc"], level="char"), Config())
        >>> type(model.to_torch().recurrent)
        <class 'torch.nn.modules.rnn.LSTM'>
        """
        return in_torch(self)

    def to_onnx(self) -> bytes:
        """Return the content of a file of ONNX, as ``bptt export`` writes it.

        Inputs are ``tokens``, int64 [T, B], and the state before them, ``h_0`` and, of an LSTM,
        ``c_0``, each [L, B, H]: zeros at the beginning of a text. Outputs are ``logits``,
        [T, B, V], and the state after the last step, ``h_n`` and ``c_n``. T and B are dynamic.
        The metadata hold ``tokenizer.json``, in the format of the tokenizers library, and
        ``language_model.json``: the cell, the sizes, and ``first_token``, which comes before the
        text.

        Raises:
            bptt.errors.ConfigError: the weights have more than 2 GB.
            bptt.errors.MissingExtraError: onnx or onnxscript is not installed.
        """
        return as_onnx(self)

    def score(self, text: str) -> Score:
        """Measure how well the model predicts a text.

        Line ends and byte order marks are treated as in a file. A warning is given if many of
        the tokens are unknown. The result's ``losses`` are those of each token, and ``targets``
        their ids.

        Raises:
            bptt.errors.CorpusError: the text has no token to predict.
        """
        tokens = encode_text(text, self.tokenizer, reading=self.config.reading)
        score = evaluate(self, tokens, per_token=True)
        warn_of_unknown(score.unknown_share, "the text", self.tokenizer.level)
        return score


def check_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        ConfigError: there is no such device here.
    """
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise ConfigError(
            f"{spelled('device', name)} cannot be used here: use cpu, cuda, cuda:1 (another one), "
            "mps or xpu"
        )
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"{spelled('device', name)} cannot be used here: {reason}") from None
