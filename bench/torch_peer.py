"""The LoRA layer in eager PyTorch, for `lowrank bench`: python3 torch_peer.py JOB|blas

JOB is the job in JSON; the protocol is that of lib/bench/subject-process.ts. The weight is dense in
the dtype of the job, or packed by bitsandbytes where the mode says so. `blas` prints what multiplies.
"""

import json
import os
import sys
import time

# What a library prints must not come between the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**fields):
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


SEEDS = {"x": (1, 1.0), "dy": (2, 1.0), "w": (3, 0.05), "loraA": (4, 0.05), "loraB": (5, 0.2)}
SCALING = 2.0


def elements(np, operand, rows, columns):
    """Element i of an operand, as lib/bench/data.ts makes it."""
    seed, scale = SEEDS[operand]
    start = seed * 0x85EBCA6B & 0xFFFFFFFF
    u = np.arange(rows * columns, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(start)
    u = (u ^ (u >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    u = u ^ (u >> np.uint32(13))
    values = (u.astype(np.float64) / 2.0**31 - 1.0) * scale
    return values.astype(np.float32).reshape(rows, columns)


def blas(torch):
    """What multiplies matrices in this torch, and with which threads: `OpenBLAS 0.3.29, its own threads`."""
    import ctypes

    if torch.backends.mkl.is_available():
        return "MKL"
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split(None, 5)[-1].strip() for line in maps if "blas" in line}
    for path in sorted(paths):
        try:
            library = ctypes.CDLL(path)
            library.openblas_get_config.restype = ctypes.c_char_p
            version = library.openblas_get_config().decode().split()[1]
            kind = {0: "one thread", 1: "its own threads", 2: "OpenMP"}[library.openblas_get_parallel()]
            return f"OpenBLAS {version}, {kind}"
        except (AttributeError, IndexError, KeyError, OSError):
            continue
    names = sorted(os.path.basename(path) for path in paths)
    if names and all(name.startswith("libblas.so") for name in names):
        return f"reference BLAS {names[0].removeprefix('libblas.so.')}"
    return ", ".join(names) or "BLAS not known"


def blas_note(torch):
    try:
        return blas(torch)
    except OSError:  # no /proc
        return "BLAS not known"


def prepare(job):
    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    M, K, N, r, op = (job[key] for key in ("M", "K", "N", "r", "op"))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[job["dtype"]]
    tensor = lambda *args: torch.from_numpy(elements(np, *args)).to(dtype)
    x, dy, w = tensor("x", M, K), tensor("dy", M, N), tensor("w", N, K)
    lora_a, lora_b = tensor("loraA", r, K), tensor("loraB", N, r)

    if job["mode"] == "bitsandbytes":
        import bitsandbytes as bnb

        packed, state = bnb.functional.quantize_4bit(w, blocksize=64, quant_type=job["format"])
        weight_bytes = packed.numel() + 4 * K * N // 64
        copy = lambda: packed.clone()
        product = lambda a, b: bnb.matmul_4bit(a, b.t(), quant_state=state)
        version = f"{bnb.__version__}, torch {torch.__version__}"
        note = f"{job['format']}, eager"
    else:
        weight_bytes = K * N * w.element_size()
        copy = lambda: w.clone()
        product = lambda a, b: a @ b.T
        version = torch.__version__
        note = f"dense {job['dtype']}, eager"

    note = f"{note}; {blas_note(torch)}"
    copies = min(256, max(1, -(-job["coldBytes"] // weight_bytes)))
    weights = [copy() for _ in range(copies)]
    turn = 0

    def weight():
        nonlocal turn
        turn += 1
        return weights[turn % copies]

    def forward():
        return product(x, weight()) + SCALING * ((x @ lora_a.T) @ lora_b.T)

    inputs = (x, lora_a, lora_b)
    if op in ("loraBackward", "lora"):
        for value in inputs:
            value.requires_grad_(True)

    if op == "matmul":
        body = lambda: product(x, weight())
    elif op == "loraForward":
        body = forward
    elif op == "loraBackward":
        results = [forward() for _ in range(copies)]

        def body():
            nonlocal turn
            turn += 1
            y = results[turn % copies]
            return torch.autograd.grad(y, inputs, dy, retain_graph=True)[0]
    else:
        body = lambda: torch.autograd.grad(forward(), inputs, dy)[0]

    graph = torch.enable_grad if op in ("loraBackward", "lora") else torch.no_grad

    def run(calls):
        with graph():
            for _ in range(calls):
                result = body()
        return result

    last = run(1)[M - 1].to(torch.float32).tolist()
    width = len(last)
    count = min(16, width)
    probe = [last[i * width // count] for i in range(count)]
    answer(ready={"version": version, "note": note, "weightBytes": weight_bytes,
                  "copies": copies, "probe": probe, "runner": "a loop in Python"})
    return run


def main():
    if sys.argv[1] == "blas":
        import torch

        answers.write(blas_note(torch) + "\n")
        return answers.flush()
    run = prepare(json.loads(sys.argv[1]))
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        answer(ms=1000 * (time.perf_counter() - start))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # every failure is told in words: the run goes on without this peer
        answer(error=f"{type(error).__name__}: {error}"[:300])
        sys.exit(1)
