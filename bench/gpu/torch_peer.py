"""What PyTorch and bitsandbytes take for the same work, for `npm run gpu:bench`.

    python3 torch_peer.py [--cpu] < cases.json

The cases are rows of bench/gpu/cases.mjs. One line of JSON a measurement: {"case", "peer",
"median_us", "quartiles_us", "graph"}; the first line tells the versions. Operands take turns until
the L2 cache holds none of them twice, and calls are replayed from a CUDA graph where they can be
captured, as on our side. With --cpu every case runs once, to prove the script.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

try:
    import bitsandbytes as bnb
except Exception:  # absent, or without a library for this device
    bnb = None

cpu = "--cpu" in sys.argv[1:]
device = "cpu" if cpu else "cuda"
if not cpu and not torch.cuda.is_available():
    sys.exit("torch has no CUDA device")
SCALING = 2.0
L2_BYTES = 0 if cpu else torch.cuda.get_device_properties(0).L2_cache_size
SAMPLES = 1 if cpu else 60
SAMPLE_US = 1000.0


def say(**row):
    print(json.dumps(row), flush=True)


def event_us(work):
    """Of one run of `work` on the current stream."""
    if cpu:
        start = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - start)
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end)


def capture(work):
    """A graph's replay, or None."""
    if cpu:
        return None
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay
    except Exception:
        torch.cuda.synchronize()
        return None


def measure(case, peer, calls):
    """`calls` are the same call over operands of their own."""
    try:
        once = lambda: [call() for call in calls]
        once()
        rounds = 1 if cpu else max(1, round(SAMPLE_US / max(event_us(once), 1)))
        count = rounds * len(calls)
        work = lambda: [call() for _ in range(rounds) for call in calls]
        replay = capture(work)
        run = replay or work
        for _ in range(1 if cpu else 30):
            run()
        times = sorted(event_us(run) / count for _ in range(SAMPLES))
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        say(case=case, peer=peer, median_us=quartiles[1], quartiles_us=[quartiles[0], quartiles[2]],
            graph=replay is not None)
    except Exception as error:
        say(case=case, peer=peer, error=str(error)[:300])
        if not cpu:
            torch.cuda.synchronize()


def rotation(call_bytes):
    return 2 if cpu else max(2, int(2 * L2_BYTES / max(call_bytes, 1)) + 1)


def normal(*shape):
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def base_linear(row, quantised):
    """A function x -> x · wᵀ over a weight of its own."""
    w = normal(row["N"], row["K"]) * 0.02
    if not quantised:
        return lambda x: F.linear(x, w)
    packed, state = bnb.functional.quantize_4bit(
        w, blocksize=64, quant_type="nf4", compress_statistics=row["doubleQuant"])
    return lambda x: bnb.matmul_4bit(x, packed.t(), quant_state=state)


def product_calls(row, quantised, sets):
    calls = []
    for _ in range(sets):
        linear, x = base_linear(row, quantised), normal(row["M"], row["K"])
        if row["op"] == "matmulInputGrad":
            x.requires_grad_()
            y = linear(x)
            dy = torch.randn_like(y)
            calls.append(lambda y=y, x=x, dy=dy: torch.autograd.grad(y, x, dy, retain_graph=True))
        else:
            calls.append(lambda linear=linear, x=x: linear(x))
    return calls


def lora_calls(row, quantised, sets):
    """As an adapter over a frozen layer is usually written; factors in bf16, which flatters it."""
    calls = []
    for _ in range(sets):
        linear, x = base_linear(row, quantised), normal(row["M"], row["K"]).requires_grad_()
        a = (normal(row["r"], row["K"]) * 0.02).requires_grad_()
        b = (normal(row["N"], row["r"]) * 0.02).requires_grad_()

        def forward(linear=linear, x=x, a=a, b=b):
            dropped = F.dropout(x, row["dropout"]) if row["dropout"] > 0 else x
            return linear(x) + SCALING * F.linear(F.linear(dropped, a), b)

        if row["op"] == "loraForward":
            calls.append(without_graph(forward))
        else:
            y = forward()
            dy = torch.randn_like(y)
            calls.append(
                lambda y=y, x=x, a=a, b=b, dy=dy:
                    torch.autograd.grad(y, (x, a, b), dy, retain_graph=True))
    return calls


def grouped_calls(row, quantised, sets):
    """A batch of many adapters (as many as adaptersOf in cases.mjs says) as it is usually written: an adapter at a time,
    its rows taken out and added to the layer's."""
    calls = []
    count = row["M"] if row["M"] <= 32 else 8
    for _ in range(sets):
        x, y = normal(row["M"], row["K"]), normal(row["M"], row["N"])
        linear = base_linear(row, quantised) if row["op"] == "groupedForward" else lambda x, y=y: y
        adapters = [(normal(row["r"], row["K"]) * 0.02, normal(row["N"], row["r"]) * 0.02,
                     torch.arange(first, row["M"], count, device=device)) for first in range(count)]

        def forward(linear=linear, x=x, adapters=adapters):
            result = linear(x)
            for a, b, rows in adapters:
                delta = SCALING * F.linear(F.linear(x.index_select(0, rows), a), b)
                result.index_add_(0, rows, delta)
            return result

        calls.append(without_graph(forward))
    return calls


def norm_calls(row, quantised, sets):
    """DoRA's norms as they are usually written: of the sum of the weight and the factors' product."""
    calls = []
    for _ in range(sets):
        w = normal(row["N"], row["K"]) * 0.02
        a, b = normal(row["r"], row["K"]) * 0.02, normal(row["N"], row["r"]) * 0.02
        weight = lambda w=w: w
        if quantised:
            packed, state = bnb.functional.quantize_4bit(
                w, blocksize=64, quant_type="nf4", compress_statistics=row["doubleQuant"])
            weight = lambda p=packed, s=state: bnb.functional.dequantize_4bit(p, s)
        calls.append(without_graph(
            lambda weight=weight, a=a, b=b: torch.linalg.norm(weight() + SCALING * (b @ a), dim=1)))
    return calls


def without_graph(call):
    def run():
        with torch.no_grad():
            return call()
    return run


def streaming_calls(row, sets):
    calls = []
    for _ in range(sets):
        w = normal(row["N"], row["K"])
        quantise = lambda w=w: bnb.functional.quantize_4bit(
            w, blocksize=64, quant_type="nf4", compress_statistics=row["doubleQuant"])
        if row["op"] == "quantizeRows":
            half = w.to(torch.float16)  # the only type it takes
            calls.append(lambda h=half: bnb.functional.int8_vectorwise_quant(h))
        elif row["op"] == "quantize":
            calls.append(quantise)
        else:
            packed, state = quantise()
            calls.append(lambda p=packed, s=state: bnb.functional.dequantize_4bit(p, s))
    return calls


def main():
    say(torch=torch.__version__, cuda=torch.version.cuda,
        bitsandbytes=getattr(bnb, "__version__", None),
        card="cpu" if cpu else torch.cuda.get_device_name(0))
    for row in json.load(sys.stdin):
        dense_bytes = 2 * row["N"] * row["K"]
        activations = 2 * row["M"] * (row["N"] + row["K"])
        for peer, quantised in (("torch bf16", False), ("bitsandbytes", True)):
            if quantised and bnb is None:
                continue
            sets = rotation((dense_bytes // 4 if quantised else dense_bytes) + activations)
            try:
                if row["op"] in ("quantize", "quantizeRows", "dequantize"):
                    if not quantised:
                        continue
                    calls = streaming_calls(row, rotation(dense_bytes + dense_bytes // 4))
                elif row["op"] == "groupedAdapters" and quantised:
                    continue
                elif row["op"] in ("groupedForward", "groupedAdapters"):
                    calls = grouped_calls(row, quantised, sets)
                elif row["op"] == "factoredNorm":
                    calls = norm_calls(row, quantised, sets)
                elif row["r"] > 0:
                    calls = lora_calls(row, quantised, sets)
                else:
                    calls = product_calls(row, quantised, sets)
            except Exception as error:
                say(case=row["case"], peer=peer, error=str(error)[:300])
                continue
            measure(row["case"], peer, calls)
            del calls
            if not cpu:
                torch.cuda.empty_cache()


main()
