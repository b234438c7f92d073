"""The library inside a process: forks, threads, leaks, the search for its file, warnings."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import warnings

import torch
from torch.utils.data import DataLoader, Dataset

from shapes import Gpt, lowrank, refused, train

CALLS = 10_000


class Rows(Dataset):
    """Each row is a product by a frozen weight, computed by the worker that loads it."""

    def __init__(self, weight):
        self.weight = weight

    def __len__(self):
        return 16

    def __getitem__(self, i):
        y = lowrank.lora_linear(torch.full((2, 64), float(i)), self.weight, None, None, None, 1.0)
        return y, os.getpid(), lowrank.library().lowrank_get_threads()


class Process(unittest.TestCase):
    def test_data_loader_with_two_workers(self):
        weight = lowrank.Weight.quantize(torch.randn(48, 64), "nf4")
        row = weight.dequantize().sum(1)
        model = Gpt()
        lowrank.patch(model)
        train(model, 1)
        loader = DataLoader(
            Rows(weight), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a fork with threads
        workers = set()
        for i, (y, processes, threads) in enumerate(loader):
            for j in range(2):
                self.assertTrue(torch.allclose(y[j], (2 * i + j) * row.expand(2, -1), atol=1e-4))
            workers |= set(processes.tolist())
            self.assertEqual(threads.tolist(), [1, 1])  # torch has one thread in a worker
            train(model, 1)
        self.assertEqual(len(workers), 2)
        self.assertNotIn(os.getpid(), workers)

    def test_eight_threads(self):
        torch.manual_seed(0)
        w = torch.randn(48, 64)
        quantised = lowrank.Weight.quantize(w, "nf4")
        given = [
            (torch.randn(3 + i, 64).requires_grad_(), quantised if i % 2 else w, None,
             torch.randn(4, 64).requires_grad_(), torch.randn(48, 4).requires_grad_(), 2.0)
            for i in range(8)
        ]  # fmt: skip

        def results(i):
            y = lowrank.lora_linear(*given[i])
            return [
                y,
                *torch.autograd.grad(y.square().sum(), (given[i][0], given[i][3], given[i][4])),
            ]

        wanted, wrong = [results(i) for i in range(8)], []

        def work(i):
            for _ in range(20):
                if not all(torch.equal(g, t) for g, t in zip(results(i), wanted[i])):
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_nothing_leaks(self):
        x, w = torch.randn(4, 64, requires_grad=True), torch.randn(48, 64)
        a, b = torch.randn(4, 64, requires_grad=True), torch.randn(48, 4, requires_grad=True)
        quantised = lowrank.Weight.quantize(w, "nf4")

        def calls(count):
            for i in range(count):
                lowrank.lora_linear(x, quantised if i % 2 else w, None, a, b, 2.0).sum().backward()
                if i % 10 == 0:
                    lowrank.Weight.quantize(w, "nf4").dequantize()
                    try:
                        lowrank.lora_linear(x[:, :60], w, None, a, b, 2.0)
                    except lowrank.LowrankError:
                        pass

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a busy machine makes a pool wait thousands of times
        self.addCleanup(torch.set_num_threads, threads)
        calls(CALLS // 10)
        gc.collect()
        before, pages = lowrank.memory(), resident()
        calls(CALLS)
        gc.collect()
        after = lowrank.memory()
        for name in ("live_bytes", "live_blocks", "live_weights"):
            self.assertEqual(after[name], before[name], name)
        # 10,000 calls that each lost their smallest tensor of 1 KiB would take 10 MiB.
        self.assertLess(resident() - pages, 4 << 20)

    def test_models_do_not_leak(self):
        def once():
            model = Gpt(width=32)
            lowrank.patch(model, "nf4", keep_weight=False)
            train(model, 1)
            del model
            gc.collect()

        once()
        before = lowrank.memory()
        for _ in range(5):
            once()
        self.assertEqual(lowrank.memory()["live_bytes"], before["live_bytes"])

    def test_threads_follow_torch(self):
        before = torch.get_num_threads()
        x, w = torch.randn(4, 64), torch.randn(48, 64)
        for threads in (1, 3, before):
            torch.set_num_threads(threads)
            lowrank.lora_linear(x, w, None, None, None, 1.0)
            self.assertEqual(lowrank.library().lowrank_get_threads(), threads)

    def child(self, program, **env):
        names = {
            "OMP_WAIT_POLICY": None,
            "LOWRANK_LIBRARY": os.environ.get("LOWRANK_LIBRARY"),
            **env,
        }
        env = {name: value for name, value in {**os.environ, **names}.items() if value is not None}
        program = f"import sys; sys.path[:0] = {sys.path!r}\nimport torch, lowrank_torch as lowrank\n{program}"
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, env=env
        )
        return done.stdout, done.stderr

    def test_one_warning_of_threads_that_spin(self):
        product = "lowrank.lora_linear(torch.ones(1, 8), torch.ones(8, 8), None, None, None, 1.0)\n"
        cores = max(2, len(os.sched_getaffinity(0)))
        program = "".join(f"torch.set_num_threads({n})\n{product}" for n in (cores, cores + 1))
        _, heard = self.child(program)
        self.assertEqual(
            heard.count("RuntimeWarning: lowrank: set OMP_WAIT_POLICY=passive"), 1, heard
        )
        _, heard = self.child(program, OMP_WAIT_POLICY="passive")
        self.assertEqual(heard, "")

    def test_the_file_of_the_library(self):
        out, _ = self.child(
            "try: lowrank.memory()\nexcept lowrank.LowrankError as error: print(error.code, error)",
            LOWRANK_LIBRARY="/nowhere/liblowrank.so.1",
        )
        self.assertTrue(out.startswith("ERR_DEVICE liblowrank.so.1 is not found"), out)
        self.assertIn("npx lowrank build --c-api", out)
        self.assertIn("/nowhere/liblowrank.so.1", out)

    def test_where_the_library_is_looked_for(self):
        here = os.path.dirname(os.path.abspath(lowrank.__file__))
        library = os.environ.get("LOWRANK_LIBRARY") or os.path.join(
            here, "../../build/Release/liblowrank.so.1"
        )
        look = "import lowrank_torch; print(lowrank_torch.library()._name)"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(here, os.path.join(folder, "python", "lowrank_torch"))
            work, room = os.path.join(folder, "a", "b"), os.path.join(
                folder, "a/node_modules/lowrank/build/Release"
            )
            os.makedirs(work), os.makedirs(room)
            command = os.path.join(folder, "lowrank")
            with open(command, "w") as file:
                file.write(
                    f"#!/bin/sh\necho '{json.dumps({'cLibrary': os.path.abspath(library)})}'\n"
                )
            os.chmod(command, 0o755)
            env = {
                name: value
                for name, value in os.environ.items()
                if name not in ("LOWRANK_LIBRARY", "PYTHONPATH")
            }
            env.update(PYTHONPATH=os.path.join(folder, "python"), PATH=f"{folder}:{env['PATH']}")

            def found():
                run = subprocess.run(
                    [sys.executable, "-c", look], cwd=work, env=env, capture_output=True, text=True
                )
                return run.stdout.strip() or run.stderr

            system = found()
            self.assertIn(system, (os.path.abspath(library), "liblowrank.so.1"))
            os.symlink(os.path.abspath(library), os.path.join(room, "liblowrank.so.1"))
            local = found()
            self.assertIn("node_modules", local)
            self.assertEqual(os.path.realpath(local), os.path.realpath(library))

    def test_a_device_that_is_not_there(self):
        with refused(self, "ERR_DEVICE", "nowhere"):
            lowrank.memory("nowhere")


if __name__ == "__main__":
    unittest.main()
