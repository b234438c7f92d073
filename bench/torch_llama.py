"""A LoRA training step of a Llama model in eager PyTorch, for `lowrank finetune`: python3 torch_llama.py JOB

JOB is in JSON; the protocol is that of lib/bench/subject-process.ts, a call is one step: forward and
backward passes over the same batches as the library's, without an update. The model is written as
transformers and PEFT write it, in f32. Weights, adapters and tokens come from one safetensors file.
"""

import json
import os
import struct
import sys
import time

from torch_peer import answer, blas_note


def read_tensors(np, torch, path):
    """Tensors of a safetensors file, by name: f32 and int32."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    types = {"F32": np.float32, "I32": np.int32}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.array(data[begin:end]).view(types[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values)
    return tensors


def build(job, tensors, torch):
    """The loss of a batch as a function of its ids and targets, and what is trained."""
    F = torch.nn.functional
    heads, kv_heads, d, eps = job["heads"], job["kvHeads"], job["headDim"], job["eps"]
    dropout, scaling = job["dropout"], job["scaling"]
    trained = [value.requires_grad_(True) for name, value in tensors.items() if ".lora_" in name]
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    tensors = {name: value if ".lora_" in name or not value.is_floating_point() else value.to(dtype)
               for name, value in tensors.items()}
    cos = torch.cat((tensors["cos"], tensors["cos"]), -1)
    sin = torch.cat((tensors["sin"], tensors["sin"]), -1)

    def linear(x, name):
        y = F.linear(x, tensors[name + ".weight"])
        lora_a = tensors.get(name + ".lora_A")
        if lora_a is None:
            return y
        x = x.to(lora_a.dtype)
        dropped = F.dropout(x, dropout) if dropout > 0 else x
        return (y + F.linear(F.linear(dropped, lora_a), tensors[name + ".lora_B"]) * scaling).to(y.dtype)

    def norm(x, name):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return tensors[name + ".weight"] * wide.to(x.dtype)

    def rotated(x):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def block(x, at):
        B, T, _ = x.shape
        layer = f"model.layers.{at}."
        split = lambda y, count: y.view(B, T, count, d).transpose(1, 2)
        n = norm(x, layer + "input_layernorm")
        q = rotated(split(linear(n, layer + "self_attn.q_proj"), heads))
        k = rotated(split(linear(n, layer + "self_attn.k_proj"), kv_heads))
        v = split(linear(n, layer + "self_attn.v_proj"), kv_heads)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, 1)
            v = v.repeat_interleave(heads // kv_heads, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(B, T, heads * d), layer + "self_attn.o_proj")
        n = norm(x, layer + "post_attention_layernorm")
        gate = F.silu(linear(n, layer + "mlp.gate_proj"))
        return x + linear(gate * linear(n, layer + "mlp.up_proj"), layer + "mlp.down_proj")

    def loss(ids, targets):
        x = F.embedding(ids, tensors["model.embed_tokens.weight"])
        for at in range(job["layers"]):
            x = block(x, at)
        logits = F.linear(norm(x, "model.norm"), tensors[job["head"]])
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))

    return loss, trained


def prepare(job):
    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    tensors = read_tensors(np, torch, job["file"])
    shape = (job["B"], job["T"])
    batches = [(tensors.pop(f"ids.{i}").long().view(shape), tensors.pop(f"targets.{i}").long())
               for i in range(job["passes"])]
    loss, trained = build(job, tensors, torch)

    def step():
        for value in trained:
            value.grad = None
        total = 0.0
        for ids, targets in batches:
            mean = loss(ids, targets) / len(batches)
            mean.backward()
            total += mean.item()
        return total

    first = step()
    answer(ready={"version": torch.__version__, "note": f"dense {job['dtype']}, eager; {blas_note(torch)}",
                  "probe": [first], "runner": "a loop in Python"})
    return step


def main():
    step = prepare(json.loads(sys.argv[1]))
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        answer(ms=1000 * (time.perf_counter() - start))


try:
    main()
except Exception as error:  # the run goes on without this comparison
    answer(error=f"{type(error).__name__}: {error}"[:300])
    sys.exit(1)
