"""Layers and a model with the attributes of loralib, of PEFT and of nanoGPT, and the step of a trainer."""

import contextlib
import math
import os
import sys
import types

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "python"))

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

import lowrank_torch as lowrank


class Loralib(nn.Linear):
    """The attributes and the arithmetic of loralib.Linear, with merging in eval()."""

    def __init__(
        self, K, N, r=8, lora_alpha=16, dropout=0.0, fan_in_fan_out=False, merge_weights=True
    ):
        super().__init__(K, N)
        self.r, self.lora_alpha, self.scaling = r, lora_alpha, lora_alpha / r
        self.fan_in_fan_out, self.merge_weights, self.merged = fan_in_fan_out, merge_weights, False
        self.lora_dropout = nn.Dropout(dropout) if dropout > 0 else (lambda x: x)
        self.lora_A = nn.Parameter(torch.randn(r, K) / math.sqrt(K))
        self.lora_B = nn.Parameter(torch.randn(N, r) * 0.02)
        self.weight.requires_grad_(False)
        if fan_in_fan_out:
            self.weight.data = self.weight.data.t().contiguous()

    def turned(self, w):
        return w.t() if self.fan_in_fan_out else w

    def train(self, mode=True):
        super().train(mode)
        if self.merge_weights and self.merged == mode:
            delta = self.turned(self.lora_B @ self.lora_A) * self.scaling
            self.weight.data += -delta.data if mode else delta.data
            self.merged = not mode
        return self

    def forward(self, x):
        y = F.linear(x, self.turned(self.weight), self.bias)
        if self.merged:
            return y
        return y + (self.lora_dropout(x) @ self.lora_A.t() @ self.lora_B.t()) * self.scaling


class Peft(nn.Module):
    """The module tree and the arithmetic of PEFT's lora.Linear."""

    def __init__(self, base, r=8, lora_alpha=16, dropout=0.0, lora_bias=False):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B, self.lora_dropout = (
            nn.ModuleDict(),
            nn.ModuleDict(),
            nn.ModuleDict(),
        )
        self.scaling, self.use_dora, self.lora_bias = {}, {}, {}
        self.active_adapters, self.merged_adapters, self.disable_adapters = [], [], False
        self.add("default", r, lora_alpha, dropout, lora_bias)

    @property
    def merged(self):
        return bool(self.merged_adapters)

    def add(self, name, r, lora_alpha, dropout=0.0, lora_bias=False):
        K, N = self.base_layer.in_features, self.base_layer.out_features
        self.lora_A[name] = nn.Linear(K, r, bias=False)
        self.lora_B[name] = nn.Linear(r, N, bias=lora_bias)
        nn.init.normal_(self.lora_B[name].weight, std=0.02)
        self.lora_dropout[name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling[name] = lora_alpha / r
        self.use_dora[name] = False
        self.active_adapters = [name]

    def delta(self, name):
        return (self.lora_B[name].weight @ self.lora_A[name].weight) * self.scaling[name]

    def merge(self):
        for name in self.active_adapters:
            self.base_layer.weight.data += self.delta(name).data
            self.merged_adapters.append(name)

    def unmerge(self):
        while self.merged_adapters:
            self.base_layer.weight.data -= self.delta(self.merged_adapters.pop()).data

    def forward(self, x, *args, **kwargs):
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.lora_A:
                dropped = self.lora_dropout[name](x.to(self.lora_A[name].weight.dtype))
                y = y + self.lora_B[name](self.lora_A[name](dropped)) * self.scaling[name]
        return y.to(x.dtype)


def adapted(kind, K, N, dropout):
    if kind == "loralib":
        return Loralib(K, N, dropout=dropout, merge_weights=False)
    return Peft(nn.Linear(K, N), dropout=dropout)


class Block(nn.Module):
    def __init__(self, width, heads, kind, dropout):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = adapted(kind, width, 3 * width, dropout), adapted(
            kind, width, width, dropout
        )
        self.up, self.down = adapted(kind, width, 4 * width, dropout), adapted(
            kind, 4 * width, width, dropout
        )

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(B, T, 3, self.heads, C // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """nanoGPT's shape, with every linear layer adapted and a frozen head."""

    def __init__(
        self, kind="loralib", width=64, layers=2, heads=4, vocabulary=96, tokens=32, dropout=0.0
    ):
        super().__init__()
        self.vocabulary, self.tokens, self.checkpointed = vocabulary, tokens, False
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads, kind, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def forward(self, ids, targets):
        x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        for block in self.blocks:
            if self.checkpointed:
                x = checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().view(-1, self.vocabulary), targets.view(-1))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model, steps, lr=0.05, rows=4):
    """Steps of gradient descent on batches that depend on the step alone; the losses."""
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        ids, targets = (
            torch.randint(model.vocabulary, (rows, model.tokens), generator=generator)
            for _ in range(2)
        )
        model.zero_grad(set_to_none=True)
        loss = model(ids, targets)
        loss.backward()
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter -= lr * parameter.grad
        losses.append(loss.item())
    return losses


def distance(got, wanted):
    """‖got - wanted‖ / ‖wanted‖ in float64; both zero is 0."""
    got, wanted = got.detach().double(), wanted.detach().double()
    norm = wanted.norm().item()
    return (got - wanted).norm().item() / (norm or 1.0)


@contextlib.contextmanager
def refused(case, code, *words):
    """The block raises a LowrankError with that code, whose message has all the words."""
    with case.assertRaises(lowrank.LowrankError) as caught:
        yield
    case.assertEqual(caught.exception.code, code, str(caught.exception))
    for word in words:
        case.assertIn(word, str(caught.exception))


def bitsandbytes_linear(weight):
    """A module as bitsandbytes' Linear4bit or Linear8bitLt is, with the bytes of a Weight."""
    parts, (N, K) = weight.parts(), weight.shape
    module = nn.Linear(K, N, bias=False, device="meta").requires_grad_(False)
    if weight.rowwise:
        each = K // weight.blocksize
        codes = (parts["codes"].to(torch.int16) - 128).to(torch.int8).view(N, K)
        module.weight = nn.Parameter(codes, requires_grad=False)
        module.weight.CB, module.weight.SCB = codes, parts["absmax"][::each].clone()
        return module
    state = types.SimpleNamespace(
        code=parts["codebook"], blocksize=weight.blocksize, quant_type=weight.format,
        shape=torch.Size((N, K)), dtype=torch.float32, nested="absmax_8bit" in parts,
    )  # fmt: skip
    if state.nested:
        state.absmax, state.offset = parts["absmax_8bit"], parts["absmax_offset"][0]
        state.state2 = types.SimpleNamespace(
            absmax=parts["nested_absmax"], code=parts["absmax_codebook"], blocksize=256
        )
    else:
        state.absmax = parts["absmax"]
    module.weight = nn.Parameter(parts["codes"].view(-1, 1), requires_grad=False)
    module.weight.quant_state = state
    return module
