"""The LoRA layer in eager PyTorch, for `lowrank bench`: python3 torch_peer.py M K N R THREADS REPEATS

Dense f32 weight (no quantised linear layer exists for the CPU without further packages); prints the
times of each operation in milliseconds as JSON.
"""

import json
import sys
import time

import torch

M, K, N, R, threads, repeats = map(int, sys.argv[1:7])
torch.set_num_threads(threads)
torch.manual_seed(1)
x = torch.randn(M, K, requires_grad=True)
w = torch.randn(N, K)
lora_a = torch.randn(R, K, requires_grad=True)
lora_b = torch.randn(N, R, requires_grad=True)
dy = torch.randn(M, N)
scaling = 2.0


def forward():
    return x @ w.T + scaling * (x @ lora_a.T) @ lora_b.T


def times(body):
    found = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        body()
        if i >= 2:
            found.append(1000 * (time.perf_counter() - start))
    return found


def without_graph(body):
    with torch.no_grad():
        body()


y = forward()
inputs = (x, lora_a, lora_b)
backward = lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
print(json.dumps({
    "version": torch.__version__,
    "matmul": times(lambda: without_graph(lambda: x @ w.T)),
    "loraForward": times(lambda: without_graph(forward)),
    "loraBackward": times(backward),
    "lora": times(lambda: torch.autograd.grad(forward(), inputs, dy)),
}))
