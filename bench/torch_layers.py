"""Single LoRA layers, forward and backward through autograd, in torch and with lowrank_torch.

    OMP_WAIT_POLICY=passive python3 bench/torch_layers.py [JOB]

JOB is a JSON object; its fields and their defaults are in DEFAULTS. Prints one JSON object a layer:
minima and medians in ms of torch, of a dense base and of one in NF4. They take turns.
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

import torch
from torch.nn import functional as F

import lowrank_torch as lowrank

DEFAULTS = {
    "layers": [[1024, 4096, 4096, 16], [512, 1024, 1024, 16], [1024, 512, 192, 8], [1, 4096, 4096, 16],
               [1, 1024, 1024, 16], [1, 64, 64, 8]],
    "dtypes": ["f32", "bf16"], "threads": 2, "seconds": 4,
}  # fmt: skip


def measure(M, N, K, r, dtype, seconds):
    torch.manual_seed(0)
    x, w, a, b, dy = (torch.randn(shape).mul_(scale).to(dtype) for shape, scale in (
        ((M, K), 1), ((N, K), 0.02), ((r, K), 0.02), ((N, r), 0.02), ((M, N), 1)))  # fmt: skip
    for each in (x, a, b):
        each.requires_grad_()
    nf4 = lowrank.Weight.quantize(w, "nf4")
    sides = {
        "torch": lambda: F.linear(x, w) + (x @ a.t() @ b.t()) * 2.0,
        "dense": lambda: lowrank.lora_linear(x, w, None, a, b, 2.0),
        "nf4": lambda: lowrank.lora_linear(x, nf4, None, a, b, 2.0),
    }
    times = {name: [] for name in sides}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times["nf4"]) < 4:
        for name, layer in sides.items():
            x.grad = a.grad = b.grad = None
            start = time.perf_counter()
            layer().backward(dy)
            times[name].append(1e3 * (time.perf_counter() - start))
    times = {name: sorted(taken[1:]) for name, taken in times.items()}
    return {
        name: {"min_ms": taken[0], "median_ms": taken[len(taken) // 2]}
        for name, taken in times.items()
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        sys.exit(f"torch_layers: fields must be of {', '.join(DEFAULTS)}, got {', '.join(unknown)}")
    job = {**DEFAULTS, **given}
    torch.set_num_threads(job["threads"])
    for name in job["dtypes"]:
        for layer in job["layers"]:
            times = measure(
                *layer, {"f32": torch.float32, "bf16": torch.bfloat16}[name], job["seconds"]
            )
            print(json.dumps({"dtype": name, "layer": layer, **times}), flush=True)
