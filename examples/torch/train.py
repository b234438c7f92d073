"""Trains LoRA adapters of a small language model on the text of a file, on a base in NF4.

OMP_WAIT_POLICY=passive python3 train.py [FILE]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "..", "python"))
import lowrank_torch as lowrank  # noqa: E402

WIDTH, HEADS, TOKENS, BATCH, STEPS = 128, 4, 64, 8, 40


def linear(K, N):
    return lowrank.LoraLinear(K, N, r=8, lora_alpha=16, format="nf4")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


torch.manual_seed(1)
with open(sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "README.md"), "rb") as file:
    text = torch.tensor(list(file.read()))
model = nn.Sequential(
    nn.Embedding(256, WIDTH), Block(), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
)
lowrank.patch(model)  # the attention of the blocks too
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
for step in range(1, STEPS + 1):
    starts = torch.randint(len(text) - TOKENS - 1, (BATCH,))
    ids = torch.stack([text[start : start + TOKENS + 1] for start in starts])
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.reshape(-1, 256), ids[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step} loss {loss.item():.2f}")
adapter = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
print(f"{len(adapter)} adapter tensors; base weights take {lowrank.memory()['live_bytes']} bytes")
