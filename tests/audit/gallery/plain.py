"""Loops in plain torch, in the style of tutorials and examples."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from audit.gallery.registry import Training, loop
from audit.gallery.streams import numbered, of_features
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bptt


class RNNModel(nn.Module):
    """The model of PyTorch's word_language_model example."""

    def __init__(self, ntoken, ninp, nhid, nlayers, dropout=0.2):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        self.ntoken, self.nhid, self.nlayers = ntoken, nhid, nlayers

    def forward(self, input, hidden):
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.ntoken)
        return F.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return (
            weight.new_zeros(self.nlayers, bsz, self.nhid),
            weight.new_zeros(self.nlayers, bsz, self.nhid),
        )


def repackage_hidden(h):
    """Wraps hidden states in new Tensors, to detach them from their history."""
    if isinstance(h, torch.Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


def get_batch(source, i, bptt_):
    seq_len = min(bptt_, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].view(-1)


@loop("counted-twice", t=0, s=0, also=("old-graph",))
def word_language_model(is_wrong):
    """Wrong: the loss that is kept for the log is the one that is backpropagated."""
    model = RNNModel(ntoken=11, ninp=4, nhid=6, nlayers=2)
    data = torch.randint(0, 11, (13, 3))
    lr = 0.1

    def train():
        model.train()
        total_loss = 0.0
        hidden = model.init_hidden(3)
        for i in range(0, data.size(0) - 1, 4):
            x, targets = get_batch(data, i, 4)
            model.zero_grad()
            if not is_wrong:
                hidden = repackage_hidden(hidden)
            output, hidden = model(x, hidden)
            loss = F.nll_loss(output, targets)
            if is_wrong:
                total_loss += loss
                total_loss.backward(retain_graph=True)
            else:
                total_loss += loss.item()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)

    return Training(train, model, "rnn", credit=bptt.Truncated(4))


@loop("old-graph", t=3, s=2)
def result_of_detach_dropped(is_wrong):
    """Wrong: ``h.detach()`` alone does nothing, and ``retain_graph=True`` silences the error."""
    rnn, fc = nn.GRU(4, 6), nn.Linear(6, 1)
    params = [*rnn.parameters(), *fc.parameters()]
    series = torch.randn(9, 2, 4)

    def run():
        h = torch.zeros(1, 2, 6)
        for x in series.split(3):
            out, h = rnn(x, h)
            loss = ((fc(out) - x.mean(-1, keepdim=True)) ** 2).mean()
            loss.backward(retain_graph=True)
            for p in params:
                p.data -= 0.05 * p.grad
                p.grad = None
            if is_wrong:
                h.detach()
            else:
                h = h.detach()

    return Training(run, nn.ModuleDict({"rnn": rnn, "fc": fc}), "rnn", credit=bptt.Truncated(3))


@loop("graph-freed", t=4, s=3)
def loop_variable_detached(is_wrong):
    """Wrong: the loop over the tuple binds a name, and detaches nothing."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 6, batch_first=True)
            self.out = nn.Linear(6, 3)

    net = Net()
    data = torch.randn(2, 13, 3)

    def run():
        opt = torch.optim.Adam(net.parameters(), lr=1e-2)
        states = (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))
        for i in range(0, 12, 4):
            inputs, targets = data[:, i : i + 4], data[:, i + 1 : i + 5]
            if is_wrong:
                for state in states:
                    state = state.detach()
            else:
                states = [state.detach() for state in states]
            outputs, states = net.lstm(inputs, tuple(states))
            loss = F.mse_loss(net.out(outputs), targets)
            opt.zero_grad()
            loss.backward()
            opt.step()

    return Training(run, net, "lstm", credit=bptt.Truncated(4))


@loop("memory-crosses-episode", t=6, s=5)
def hidden_of_the_last_epoch(is_wrong):
    """Wrong: the hidden state is made once, so each epoch goes on from the end of the corpus."""
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "gru": nn.GRU(4, 6), "fc": nn.Linear(6, 9)})
    corpus = torch.randint(0, 9, (7, 2))

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        hidden = None
        for _ in range(2):
            if not is_wrong:
                hidden = None
            for i in (0, 3):
                x, y = corpus[i : i + 3], corpus[i + 1 : i + 4]
                output, hidden = model["gru"](model["embed"](x), hidden)
                hidden = hidden.detach()
                loss = F.cross_entropy(model["fc"](output).flatten(0, 1), y.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    options = {"episodes": [0] * 6 + [1] * 6}
    return Training(run, model, "gru", options, credit=bptt.Truncated(3))


@loop("shuffled-batches", t=4, s=3, also=("other-sequence",))
def validation_between_updates(is_wrong):
    """Wrong: the evaluation leaves its own state in the trainer for the next update."""

    class Trainer:
        def __init__(self, model, train, valid):
            self.model, self.data, self.valid = model, train, valid
            self.opt = torch.optim.Adagrad(model.parameters(), lr=0.1)

        def step(self, window):
            out, self.hidden = self.model["rnn"](window, self.hidden)
            self.hidden = tuple(h.detach() for h in self.hidden)
            return (self.model["fc"](out[:-1]).squeeze(-1) - window[1:, :, 2]).pow(2).mean()

        @torch.no_grad()
        def evaluate(self):
            if is_wrong:
                self.hidden = None
                return self.step(self.valid).item()
            kept, self.hidden = self.hidden, None
            loss = self.step(self.valid).item()
            self.hidden = kept
            return loss

        def fit(self):
            self.hidden = None
            for window in self.data.split(4):
                self.model.train()
                self.opt.zero_grad()
                self.step(window).backward()
                self.opt.step()
                self.model.eval()
                self.evaluate()

    def stream_of(first):  # the number of the sequence and of the step are two of the inputs
        x = torch.randn(12, 2, 3)
        x[..., 0], x[..., 1] = torch.arange(first, first + 2), torch.arange(12.0)[:, None]
        return x

    model = nn.ModuleDict({"rnn": nn.LSTM(3, 6), "fc": nn.Linear(6, 1)})
    train, valid = stream_of(0), stream_of(2)[:4]
    options = {"label": lambda x: (x[..., 0].long(), x[..., 1].long())}
    return Training(lambda: Trainer(model, train, valid).fit(), model, "rnn", options)


@loop("credits-nothing", t=0, s=0)
def masked_loss(is_wrong):
    """Wrong: the mask is 1 on the padding, so a sequence of full length teaches nothing."""
    model = nn.ModuleDict({"rnn": nn.GRU(3, 6, batch_first=True), "fc": nn.Linear(6, 1)})
    x, y = torch.randn(3, 6, 3), torch.randn(3, 6)
    lengths = torch.tensor([6, 4, 3])

    def run():
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            steps = torch.arange(6).expand(3, 6)
            mask = (steps >= lengths[:, None]) if is_wrong else (steps < lengths[:, None])
            out, _ = model["rnn"](x)
            loss = ((model["fc"](out).squeeze(-1) - y) ** 2 * mask).sum() / mask.sum()
            opt.zero_grad()
            loss.backward()
            opt.step()

    return Training(run, model, "rnn", credit=bptt.Truncated(6))


class Classifier(nn.Module):
    """A sequence classifier, as tutorials write it."""

    def __init__(self, is_wrong, batch_first=True):
        super().__init__()
        self.is_wrong = is_wrong
        self.lstm = nn.LSTM(3, 8, batch_first=batch_first)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[-1] if self.is_wrong else out[:, -1])


@loop("credits-nothing", t=0, s=0)
def last_step_of_batch_first(is_wrong):
    """Wrong: ``out[-1]`` of a batch_first module is the last sequence, not the last step."""
    model = Classifier(is_wrong)

    def run():
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters())
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            images = torch.randn(5, 5, 3, generator=generator)
            labels = torch.randint(0, 4, (5,), generator=generator)
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Training(run, model, "lstm", credit=bptt.Truncated(5))


@loop("shuffled-batches", t=0, s=0, also=("other-sequence",))
def batch_first_forgotten(is_wrong):
    """Wrong: [B, T, I] goes into a module that reads it as [T, B, I]: the batch becomes time."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(4, 6, batch_first=not is_wrong)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    x = torch.randn(4, 5, 4)
    x[..., 0], x[..., 1] = torch.arange(4.0)[:, None], torch.arange(5.0)
    y = torch.randint(0, 2, (4, 5))
    tagger = Tagger()

    def run():
        optimizer = torch.optim.SGD(tagger.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(tagger(x).transpose(1, 2), y).backward()
            optimizer.step()

    options = {"label": lambda x: (x[..., 0].long(), x[..., 1].long())}
    return Training(run, tagger, "rnn", options)


@loop("counted-twice", t=0, s=0)
def two_heads(is_wrong):
    """Right: a backward pass for each head. Wrong: both passes are of the first head's loss."""
    trunk, tags, chunks = nn.GRU(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
    model = nn.ModuleList([trunk, tags, chunks])
    x = torch.randn(6, 2, 4)
    y, z = torch.randint(0, 3, (6, 2)), torch.randint(0, 2, (6, 2))

    def run():
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
        for _ in range(2):
            features, _ = trunk(x)
            loss_tags = F.cross_entropy(tags(features).flatten(0, 1), y.flatten())
            loss_chunks = F.cross_entropy(chunks(features).flatten(0, 1), z.flatten())
            optimizer.zero_grad()
            loss_tags.backward(retain_graph=True)
            if is_wrong:
                loss_tags.backward()
            else:
                loss_chunks.backward()
            optimizer.step()

    return Training(run, model, "0")


@loop("counted-twice", t=0, s=0)
def gradient_penalty(is_wrong):
    """Wrong: the inputs' gradient is got by ``backward``, which leaves the loss's in the
    parameters, and the sum of loss and penalty adds it again."""
    critic = nn.ModuleDict({"rnn": nn.GRU(3, 6), "fc": nn.Linear(6, 1)})
    data = torch.randn(5, 2, 3)

    def run():
        opt = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for _ in range(2):
            opt.zero_grad()
            x = data.clone().requires_grad_()
            out, _ = critic["rnn"](x)
            loss = critic["fc"](out).square().mean()
            if is_wrong:
                loss.backward(retain_graph=True)
                grad = x.grad
            else:
                (grad,) = torch.autograd.grad(loss, x, create_graph=True)
            penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
            (loss + 10 * penalty).backward()
            opt.step()
            opt.zero_grad()
            x.grad = None

    return Training(run, critic, "rnn")


@loop("counted-twice", t=0, s=0)
def gradient_accumulation(is_wrong):
    """Wrong: what is accumulated over the micro-batches is the loss, and each one's backward pass
    goes through all those before."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
            self.layers = nn.ModuleList([nn.RNN(4, 6, nonlinearity="relu"), nn.GRU(6, 6)])
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x = self.body(x)
            for layer in self.layers:
                x, _ = layer(x)
            return self.head(x)

    model = Model()
    micro_batches = torch.randn(4, 4, 2, 3)
    accumulation_steps = 2

    def run():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        running = 0.0
        for i, x in enumerate(micro_batches):
            loss = F.mse_loss(model(x), x) / accumulation_steps
            if is_wrong:
                running = running + loss
                running.backward(retain_graph=True)
            else:
                loss.backward()
            if (i + 1) % accumulation_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
                running = 0.0

    return Training(run, model, "layers.1", credit=bptt.Truncated(4))


@loop("credits-nothing", t=0, s=0)
def activation_checkpointing(is_wrong):
    """Wrong: the reentrant kind gives no gradient where no input requires one; it only warns."""
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 6), "fc": nn.Linear(6, 3)})
    data = torch.randn(6, 2, 3)

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in many a log
                out, _ = checkpoint(model["rnn"], data, use_reentrant=is_wrong)
            loss = F.mse_loss(model["fc"](out), data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Training(run, model, "rnn", credit=bptt.Truncated(6))


@loop("counted-twice", t=0, s=0)
def gradient_norm_logged(is_wrong):
    """Wrong: the norm for the log is got by ``backward``, whose gradients stay in ``grad``."""
    model = nn.ModuleDict({"rnn": nn.GRU(3, 6), "fc": nn.Linear(6, 1)})
    x, y = torch.randn(5, 2, 3), torch.randn(5, 2, 1)

    def run():
        log = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            loss = F.mse_loss(model["fc"](model["rnn"](x)[0]), y)
            optimizer.zero_grad()
            if is_wrong:
                loss.backward(retain_graph=True)
                norm = model["rnn"].weight_hh_l0.grad.norm()
            else:
                (grad,) = torch.autograd.grad(loss, model["rnn"].weight_hh_l0, retain_graph=True)
                norm = grad.norm()
            log.append(norm.item())
            loss.backward()
            optimizer.step()

    return Training(run, model, "rnn", credit=bptt.Truncated(5))


@loop("shuffled-batches", t=4, s=3, also=("other-sequence",))
def meta_learning(is_wrong):
    """MAML of second order; a task's query goes on where its support ends. Wrong: the state is that
    after the support of the task before."""

    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(3, 6), nn.Linear(6, 1)

        def forward(self, x, h=None):
            y, h = self.rnn(x, h)
            return self.fc(y), h

    learner = Learner()
    tasks = numbered(torch.randn(8, 3, 3)).split(1, dim=1)

    def run():
        meta = torch.optim.Adam(learner.parameters(), lr=1e-3)
        before = None
        for task in tasks:
            support, query = task[:4], task[4:]
            slow = dict(learner.named_parameters())
            y, h = functional_call(learner, slow, (support,))
            grads = torch.autograd.grad(y.square().mean(), tuple(slow.values()), create_graph=True)
            fast = {k: p - 0.1 * g for (k, p), g in zip(slow.items(), grads, strict=True)}
            start = before if is_wrong and before is not None else h.detach()
            before = h.detach()
            y, _ = functional_call(learner, fast, (query, start))
            meta.zero_grad()
            y.square().mean().backward()
            meta.step()

    return Training(run, learner, "rnn", {"label": of_features})
