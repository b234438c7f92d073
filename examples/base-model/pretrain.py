"""Pretrains the bundled base model: a small Llama on mailing-list discussions.

    python3 pretrain.py CORPUS_FOLDER MODEL_FOLDER [--evaluate]

Reads CORPUS_FOLDER/{pretrain,finetune}.u16 (token ids from train-tokenizer.mjs) and
MODEL_FOLDER/tokenizer.json; writes MODEL_FOLDER/{config,generation_config}.json and
model.safetensors (bfloat16). Needs torch and numpy. Every random choice comes from --seed.
The losses that it prints last are those of the weights as stored, after rounding to bfloat16.
"""

import argparse
import json
import math
import pathlib
import struct
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1023,
    "eos_token_id": 1023,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
END_OF_TEXT = CONFIG["eos_token_id"]
CONTEXT = CONFIG["max_position_embeddings"]
DROPOUT = 0.1  # on what each block adds to the residual stream, in training only


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight"""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        return x * scale * self.weight


def rotary(x):
    """x cos(p f) + rotate_half(x) sin(p f), f_i = theta^(-2i/d), rotate_half(a, b) = (-b, a)"""
    d = x.shape[-1]
    frequency = CONFIG["rope_theta"] ** (-torch.arange(0, d, 2) / d)
    angle = torch.arange(x.shape[-2])[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    a, b = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, causal; every group of query heads shares one k and v head"""

    def __init__(self):
        super().__init__()
        size, d = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.q_proj = nn.Linear(size, CONFIG["num_attention_heads"] * d, bias=False)
        self.k_proj = nn.Linear(size, CONFIG["num_key_value_heads"] * d, bias=False)
        self.v_proj = nn.Linear(size, CONFIG["num_key_value_heads"] * d, bias=False)
        self.o_proj = nn.Linear(CONFIG["num_attention_heads"] * d, size, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = lambda y: y.view(batch, length, -1, CONFIG["head_dim"]).transpose(1, 2)
        q, k, v = (heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        group = CONFIG["num_attention_heads"] // CONFIG["num_key_value_heads"]
        k, v = rotary(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(rotary(q), k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self):
        super().__init__()
        size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.mlp = MLP()

    def forward(self, x):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x)), DROPOUT, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), DROPOUT, self.training)


class Model(nn.Module):
    """Logits of the next token; the head is the embedding, transposed (tied)."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RMSNorm(CONFIG["hidden_size"])
        residual_scale = (2 * CONFIG["num_hidden_layers"]) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = residual_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(weight, std=CONFIG["initializer_range"] * scale)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embed_tokens.weight.T


def loss_of(model, inputs, targets):
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def windows(ids):
    """(inputs, targets) of consecutive windows that do not overlap; the tail is left out."""
    count = (len(ids) - 1) // CONTEXT
    cut = lambda start: ids[start : start + count * CONTEXT].view(count, CONTEXT)
    return cut(0), cut(1)


@torch.no_grad()
def evaluate(model, ids):
    model.eval()
    inputs, targets = windows(ids)
    total = sum(
        loss_of(model, x, y).item() * len(x) for x, y in zip(inputs.split(32), targets.split(32))
    )
    model.train()
    return total / len(inputs)


def unigram_loss(train, held_out):
    """Cross-entropy of the held-out targets under the training frequencies, add-one smoothed."""
    counts = torch.bincount(train, minlength=CONFIG["vocab_size"]).double() + 1
    return -(counts / counts.sum()).log()[windows(held_out)[1].flatten()].mean().item()


def token_bytes(model_folder):
    """The bytes of each token; the end-of-text token stands for the blank line between mails."""
    vocab = json.loads((model_folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)[:END_OF_TEXT]  # ids 0 to 255 are the single bytes
    return [*(bytes(vocab[char] for char in token) for token in tokens), b"\n\n"]


@torch.no_grad()
def sample(model, table, prompt, generator, count=90, temperature=0.7, top_k=40):
    """Continues the prompt, which is spelt out greedily with the longest tokens that fit."""
    model.eval()
    rest, ids = prompt.encode(), [END_OF_TEXT]
    while rest:
        ids.append(max((i for i, t in enumerate(table) if t and rest.startswith(t)),
                       key=lambda i: len(table[i])))
        rest = rest[len(table[ids[-1]]):]
    for _ in range(count):
        logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1] / temperature
        top = logits.topk(top_k)
        ids.append(top.indices[torch.multinomial(top.values.softmax(-1), 1, generator=generator)].item())
    return b"".join(table[i] for i in ids[1:]).decode(errors="replace")


def save(model, folder):
    """config.json, generation_config.json, model.safetensors: u64 header size, JSON header, data."""
    header, chunks, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, weight in sorted(model.named_parameters()):
        data = weight.detach().bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
        header[f"model.{name}"] = {"dtype": "BF16", "shape": list(weight.shape),
                        "data_offsets": [offset, offset + len(data)]}
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "do_sample": True,
                  "temperature": 0.7, "top_k": 40}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load(model, folder):
    """The weights as stored."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            begin, end = (start + offset for offset in header[f"model.{name}"]["data_offsets"])
            values = np.frombuffer(data[begin:end], "<i2").astype(np.int16)
            weight.copy_(torch.from_numpy(values).view(torch.bfloat16).view_as(weight))


def learning_rate(step, args):
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / (args.steps - args.warmup)
    return args.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def train(model, ids, held_out, args):
    """AdamW on random windows; weight decay on matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(args.seed)
    offsets, started = torch.arange(CONTEXT), time.monotonic()
    for step in range(args.steps):
        start = torch.randint(len(ids) - CONTEXT, (args.batch, 1), generator=generator) + offsets
        loss = loss_of(model, ids[start], ids[start + 1])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args)
        optimiser.step()
        if (step + 1) % args.report == 0:
            save(model, args.model)
            seconds = time.monotonic() - started
            print(f"step {step + 1} loss {loss.item():.3f} held-out {evaluate(model, held_out):.3f} "
                  f"{seconds:.0f} s", flush=True)


def report(model, ids, held_out, args):
    table = token_bytes(args.model)
    finetune = torch.from_numpy(np.fromfile(args.corpus / "finetune.u16", "<u2").astype(np.int64))
    load(model, args.model)
    print(f"parameters {sum(p.numel() for p in model.parameters())}")
    for name, text in (("held-out mails", held_out), ("fine-tuning text", finetune)):
        size = sum(len(table[i]) for i in text.tolist())
        losses = {"uniform": math.log(CONFIG["vocab_size"]), "unigram": unigram_loss(ids, text),
                  "model": evaluate(model, text)}
        print(f"{name}: {len(text)} tokens, {size} bytes")
        for kind, nats in losses.items():
            bits = nats / math.log(2) * len(text) / size
            print(f"  {kind}: {nats:.3f} nats per token, {bits:.3f} bits per byte")
    generator = torch.Generator().manual_seed(args.seed)
    for prompt in ("I think", "The problem with", "Headline:"):
        print("---\n" + sample(model, table, prompt, generator))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--report", type=int, default=300, help="steps between reports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="report on the stored model only")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    ids = torch.from_numpy(np.fromfile(args.corpus / "pretrain.u16", "<u2").astype(np.int64))
    ends = (ids == END_OF_TEXT).nonzero().flatten() + 1
    cut = ends[len(ends) * 19 // 20].item()  # the last 5 % of the mails are held out
    ids, held_out = ids[:cut], ids[cut:]
    print(f"training tokens {len(ids)}, held-out {len(held_out)}", flush=True)
    model = Model()
    if not args.evaluate:
        train(model, ids, held_out, args)
    report(model, ids, held_out, args)


if __name__ == "__main__":
    main()
