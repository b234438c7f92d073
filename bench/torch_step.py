"""A training step of a nanoGPT-shaped model in PyTorch, without and with lowrank_torch.patch().

    OMP_WAIT_POLICY=passive python3 bench/torch_step.py [JOB]

JOB is a JSON object; its fields and their defaults are in DEFAULTS. Prints one JSON object: minima
and medians of the steps in ms, the losses of both sides, and the bytes of the base weights. The
sides take turns, on one model each with the same start.
"""

import copy
import json
import math
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

import torch
from torch import nn
from torch.nn import functional as F

import lowrank_torch as lowrank

DEFAULTS = {
    "width": 512, "layers": 4, "heads": 8, "vocabulary": 512, "tokens": 256, "batch": 4, "r": 8,
    "dtype": "f32", "format": None, "keep": True, "threads": 2, "steps": 12, "warmup": 2, "seconds": 60,
    "seed": 7,
}  # fmt: skip


class LoraLinear(nn.Linear):
    """A linear layer with an adapter beside a frozen weight, with loralib's attributes."""

    def __init__(self, K, N, r, lora_alpha=16):
        super().__init__(K, N)
        self.r, self.scaling, self.merged = r, lora_alpha / r, False
        self.lora_A = nn.Parameter(torch.randn(r, K) / math.sqrt(K))
        self.lora_B = nn.Parameter(torch.randn(N, r) * 0.01)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(self, x):
        return (
            F.linear(x, self.weight, self.bias)
            + (x @ self.lora_A.t() @ self.lora_B.t()) * self.scaling
        )


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each behind a norm."""

    def __init__(self, width, heads, r):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = LoraLinear(width, 3 * width, r), LoraLinear(width, width, r)
        self.up, self.down = LoraLinear(width, 4 * width, r), LoraLinear(4 * width, width, r)

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


class Model(nn.Module):
    def __init__(self, job):
        super().__init__()
        width, vocabulary = job["width"], job["vocabulary"]
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(job["tokens"], width)
        blocks = [Block(width, job["heads"], job["r"]) for _ in range(job["layers"])]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def forward(self, ids, targets):
        x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


class Side:
    """A model with its optimiser."""

    def __init__(self, model):
        self.model = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)
        self.ms, self.losses = [], []

    def step(self, ids, targets, counts):
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(ids, targets)
        loss.backward()
        self.optimizer.step()
        elapsed = 1e3 * (time.perf_counter() - began)
        self.losses.append(loss.item())
        if counts:
            self.ms.append(elapsed)

    def report(self):
        times = sorted(self.ms)
        return {"min_ms": times[0], "median_ms": times[len(times) // 2], "losses": self.losses}


def base_bytes(model):
    """Of the weights below adapters: those of torch, and quantised copies."""
    total = 0
    for module in model.modules():
        if isinstance(module, LoraLinear):
            total += module.weight.numel() * module.weight.element_size()
    return total + lowrank.memory()["live_bytes"]


def run(job):
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    plain = Side(Model(job).to(dtype))
    patched = Side(copy.deepcopy(plain.model))
    before = base_bytes(plain.model)
    layers = lowrank.patch(patched.model, job["format"], job["keep"])
    after = base_bytes(patched.model)
    shape = (job["batch"], job["tokens"])
    began = time.perf_counter()
    for i in range(job["warmup"] + job["steps"]):
        ids = torch.randint(job["vocabulary"], shape)
        targets = torch.randint(job["vocabulary"], shape)
        for side in (plain, patched) if i % 2 else (patched, plain):
            side.step(ids, targets, i >= job["warmup"])
        if len(plain.ms) >= 3 and time.perf_counter() - began > job["seconds"]:
            break
    return {
        "job": job,
        "torch": torch.__version__,
        "lowrank": lowrank.library().lowrank_version().decode(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "layers": len(layers.adapters),
        "frozen": len(layers.frozen),
        "plain": plain.report(),
        "patched": patched.report(),
        "base_bytes": {"plain": before, "patched": after},
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        sys.exit(f"torch_step: fields must be of {', '.join(DEFAULTS)}, got {', '.join(unknown)}")
    print(json.dumps(run({**DEFAULTS, **given})))
