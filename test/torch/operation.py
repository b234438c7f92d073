"""lora_linear and Weight: values, gradients, dispatch by torch, and what they refuse."""

import copy
import ctypes
import pickle
import types
import unittest
import warnings
from unittest import mock

import torch
from torch import nn

from shapes import bitsandbytes_linear, distance, lowrank, refused
from lowrank_torch.calls import call


def operands(M=(3, 5), N=48, K=64, r=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*M, K), (N, K), (N,), (r, K), (N, r), (N,))
    x, w, bias, a, b, lora_bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return [t.requires_grad_(t is not w) for t in (x, w, bias, a, b, lora_bias)]


def formula(x, w, bias, a, b, lora_bias, scaling, mask=None, dropout=0.0):
    """In float64, of dequantised values."""
    x, w, bias, a, b, lora_bias = (t.double() for t in (x, w, bias, a, b, lora_bias))
    dropped = x if mask is None else x * mask.double() / (1 - dropout)
    return x @ w.t() + bias + scaling * (dropped @ a.t() @ b.t() + lora_bias)


class Values(unittest.TestCase):
    def compare(self, given, w, values, bound, call=lowrank.lora_linear, mask=None, dropout=0.0):
        x, _, bias, a, b, lora_bias = given
        y = call(x, w, bias, a, b, 0.5, dropout, mask=mask, lora_bias=lora_bias)
        wanted = formula(x, values, bias, a, b, lora_bias, 0.5, mask, dropout)
        self.assertEqual(y.dtype, x.dtype)
        self.assertLess(distance(y, wanted), bound)
        trained = (x, bias, a, b, lora_bias)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
        got = torch.autograd.grad(y, trained, dy)
        for g, t, name in zip(
            got, torch.autograd.grad(wanted, trained, dy.double()), "x bias a b lora_bias".split()
        ):
            self.assertLess(distance(g, t), bound, name)

    def test_dense(self):
        for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
            given = operands(dtype=dtype)
            self.compare(given, given[1], given[1], bound)

    def test_factors_in_f32_beside_bf16(self):
        given = operands(dtype=torch.bfloat16)
        given[3], given[4] = (t.detach().float().requires_grad_() for t in given[3:5])
        self.compare(given, given[1], given[1], 2e-2)

    def test_formats(self):
        given = operands(K=128)
        for format in ("nf4", "fp4", "int4", "int8"):
            for options in ({}, {"double_quant": True}, {"blocksize": 128}):
                weight = lowrank.Weight.quantize(given[1], format, **options)
                self.compare(given, weight, weight.dequantize(), 2e-6)
        weight = lowrank.Weight.quantize(given[1], "int8", rowwise=True)
        self.assertLess(distance(weight.dequantize(), given[1]), 1e-2)
        self.compare(given, weight, weight.dequantize(), 2e-6)

    def test_masks(self):
        given = operands()
        mask = (
            torch.empty_like(given[0])
            .bernoulli_(0.7, generator=torch.Generator().manual_seed(1))
            .detach()
        )
        self.compare(given, given[1], given[1], 2e-6, mask=mask, dropout=0.3)

    def test_strides_of_any_kind(self):
        given = operands()
        x = (
            given[0]
            .detach()[..., None]
            .expand(3, 5, 64, 2)
            .transpose(0, 1)[..., 0]
            .requires_grad_()
        )
        given[0] = x
        given[4] = given[4].detach().t().contiguous().t().requires_grad_()
        self.compare(given, given[1].t().contiguous().t(), given[1], 2e-6)

    def test_gradients_that_are_not_contiguous(self):
        x, w, bias, a, b, _ = operands()
        y = lowrank.lora_linear(x, w, bias, a, b, 2.0)
        got = torch.autograd.grad(y.sum(), (x, a), retain_graph=True)
        wanted = torch.autograd.grad(y, (x, a), torch.ones_like(y))
        for g, t in zip(got, wanted):
            self.assertTrue(torch.equal(g, t))

    def test_base_alone(self):
        x, w, bias, *_ = operands()
        for weight in (w, lowrank.Weight.quantize(w, "nf4")):
            values = w if weight is w else weight.dequantize()
            y = lowrank.lora_linear(x, weight, bias, None, None, 1.0)
            wanted = torch.nn.functional.linear(x, values, bias)
            self.assertLess(distance(y, wanted), 2e-6)
            dy = torch.randn_like(y)
            for g, t in zip(
                torch.autograd.grad(y, (x, bias), dy), torch.autograd.grad(wanted, (x, bias), dy)
            ):
                self.assertLess(distance(g, t), 2e-6)

    def test_no_rows(self):
        given = operands(M=(0, 4))
        y = lowrank.lora_linear(*given[:5], 2.0)
        self.assertEqual(tuple(y.shape), (0, 4, 48))
        y.sum().backward()
        self.assertEqual(given[3].grad.abs().sum().item(), 0)

    def test_gradcheck_on_the_reference_device(self):
        # The layer is linear in each operand, so that wide differences are exact up to rounding.
        x, w, bias, a, b, lora_bias = operands(M=(3,), N=5, K=8, r=2)
        for weight in (w, lowrank.Weight.quantize(w, "nf4")):

            def layer(x, bias, a, b, lora_bias, weight=weight):
                return lowrank.lora_linear(x, weight, bias, a, b, 0.5, 0.25, 11, lora_bias=lora_bias)  # fmt: skip

            with lowrank.reference(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch doubts operands of single precision
                self.assertTrue(
                    torch.autograd.gradcheck(
                        layer, (x, bias, a, b, lora_bias), eps=0.5, atol=2e-5, rtol=2e-5
                    )
                )

    def test_seeds(self):
        x, w, bias, a, b, _ = operands(M=(64,))

        def at(seed):
            return lowrank.lora_linear(x, w, bias, a, b, 2.0, 0.5, seed)

        self.assertTrue(torch.equal(at(3), at(3)))
        self.assertFalse(torch.equal(at(3), at(4)))
        self.assertTrue(torch.equal(at(-1), at((1 << 64) - 1)))


class Torch(unittest.TestCase):
    def test_opcheck(self):
        x, w, bias, a, b, lora_bias = operands()
        quantised = lowrank.Weight.quantize(w, "nf4")
        op = torch.ops.lowrank.lora_linear.default
        mask = torch.ones_like(x)
        for given in (
            (x, w, bias, a, b, 2.0),
            (x, w, bias, a, b, 2.0, 0.5, 7),
            (x, None, None, a, b, 2.0, 0.5, 0, mask, lora_bias, quantised.number, 48),
            (x, w, bias, None, None, 1.0),
        ):
            done = torch.library.opcheck(op, given)
            self.assertEqual(set(done.values()), {"SUCCESS"}, done)
        with torch.no_grad():
            y, h = op(x, w, bias, a, b, 2.0)
        dy, x = torch.randn_like(y), x.detach()
        gradient = (
            dy,
            x,
            w,
            bias.detach(),
            a.detach(),
            b.detach(),
            2.0,
            0.0,
            0,
            None,
            None,
            0,
            h,
            [True] * 4 + [False],
        )
        done = torch.library.opcheck(torch.ops.lowrank.lora_linear_backward.default, gradient)
        self.assertEqual(set(done.values()), {"SUCCESS"}, done)

    def test_op_and_eager_have_the_same_bits(self):
        x, w, bias, a, b, lora_bias = operands()
        y = lowrank.lora_linear(x, w, bias, a, b, 2.0, 0.5, 7, lora_bias=lora_bias)
        z = torch.ops.lowrank.lora_linear(x, w, bias, a, b, 2.0, 0.5, 7, None, lora_bias)[0]
        self.assertTrue(torch.equal(y, z))
        dy, trained = torch.randn_like(y), (x, bias, a, b, lora_bias)
        for g, t in zip(torch.autograd.grad(y, trained, dy), torch.autograd.grad(z, trained, dy)):
            self.assertTrue(torch.equal(g, t))

    def test_compile(self):
        x, w, bias, a, b, _ = operands()
        quantised = lowrank.Weight.quantize(w, "nf4")

        def program(x, a, b):
            y = lowrank.lora_linear(x, w, bias, a, b, 2.0).relu()
            return y + lowrank.lora_linear(x, quantised, bias, a, b, 2.0)

        compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
        y, z = compiled(x, a, b), program(x, a, b)
        self.assertTrue(torch.equal(y, z))
        for g, t in zip(
            torch.autograd.grad(y.sum(), (x, a, b)), torch.autograd.grad(z.sum(), (x, a, b))
        ):
            self.assertLess(distance(g, t), 1e-6)

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            x, w, a, b = (torch.empty(s) for s in ((2, 3, 64), (48, 64), (8, 64), (48, 8)))
            y = lowrank.lora_linear(x, w, None, a, b, 2.0)
        self.assertEqual(tuple(y.shape), (2, 3, 48))

    def test_second_derivatives_are_refused(self):
        x, w, bias, a, b, _ = operands()
        for layer in (lowrank.lora_linear, lambda *given: torch.ops.lowrank.lora_linear(*given)[0]):
            (dx,) = torch.autograd.grad(
                layer(x, w, bias, a, b, 2.0).square().sum(), x, create_graph=True
            )
            with refused(self, "ERR_UNSUPPORTED", "first order"):
                dx.sum().backward()

    def test_transforms_of_functions_are_refused(self):
        x, w, bias, a, b, _ = (t.detach() for t in operands())

        def loss(a):
            return lowrank.lora_linear(x, w, bias, a, b, 2.0).sum()

        with refused(self, "ERR_UNSUPPORTED", "torch.func"):
            torch.func.grad(loss)(a)
        with refused(self, "ERR_UNSUPPORTED", "torch.func"):
            torch.func.vmap(loss)(a[None])

    def test_inference_mode(self):
        x, w, bias, a, b, _ = operands()
        with torch.inference_mode():
            y = lowrank.lora_linear(x, w, bias, a, b, 2.0)
        self.assertTrue(torch.equal(y, lowrank.lora_linear(x, w, bias, a, b, 2.0)))

    def test_a_weight_that_changes_before_the_backward_pass(self):
        x, w, bias, a, b, _ = operands()
        y = lowrank.lora_linear(x, w, bias, a, b, 2.0)
        with torch.no_grad():
            w.mul_(2)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()


class Weights(unittest.TestCase):
    def test_bytes_of_bitsandbytes(self):
        w = torch.randn(48, 128)
        for format, options in (
            ("nf4", {}), ("fp4", {"blocksize": 128}), ("nf4", {"double_quant": True}), ("int8", {"rowwise": True}),
        ):  # fmt: skip
            weight = lowrank.Weight.quantize(w, format, **options)
            again = lowrank.Weight.from_bitsandbytes(bitsandbytes_linear(weight))
            self.assertEqual(
                (again.format, again.shape, again.bytes),
                (weight.format, weight.shape, weight.bytes),
            )
            self.assertTrue(torch.equal(again.dequantize(), weight.dequantize()))
            for name, part in weight.parts().items():
                self.assertTrue(torch.equal(part, again.parts()[name]), name)

    def test_copies(self):
        w = torch.randn(32, 64)
        for weight in (
            lowrank.Weight.quantize(w, "nf4"),
            lowrank.Weight.quantize(w, "int8", rowwise=True),
            lowrank.Weight.wrap(w),
        ):
            again = pickle.loads(pickle.dumps(weight))
            self.assertTrue(torch.equal(again.dequantize(), weight.dequantize()))
            self.assertIs(copy.deepcopy(weight), weight)

    def test_memory(self):
        weight = lowrank.Weight.quantize(torch.randn(256, 1024), "nf4")
        self.assertLess(weight.bytes, 0.15 * 4 * 256 * 1024)
        self.assertGreaterEqual(lowrank.memory()["live_bytes"], weight.bytes)

    def test_refusals(self):
        w = torch.randn(4, 64)
        with refused(self, "ERR_FORMAT", "nf4", "nope"):
            lowrank.Weight.quantize(w, "nope")
        with refused(self, "ERR_NON_FINITE"):
            lowrank.Weight.quantize(torch.full((4, 64), float("nan")), "nf4")
        with refused(self, "ERR_SHAPE", "[N, K]"):
            lowrank.Weight.quantize(torch.randn(64), "nf4")
        with refused(self, "ERR_DTYPE", "int32"):
            lowrank.Weight.quantize(torch.ones(4, 64, dtype=torch.int32), "nf4")
        parts = lowrank.Weight.quantize(w, "nf4").parts()
        with refused(self, "ERR_FORMAT", "128 elements", "127"):
            lowrank.Weight.from_parts("nf4", (4, 64), {**parts, "codes": parts["codes"][:127]})
        with refused(self, "ERR_FORMAT", "scales"):
            lowrank.Weight.from_parts("nf4", (4, 64), {**parts, "scales": parts["absmax"]})
        with refused(self, "ERR_TYPE", "Linear4bit"):
            lowrank.Weight.from_bitsandbytes(nn.Linear(8, 8))
        with refused(self, "ERR_SHAPE", "contiguous"):
            lowrank.Weight.wrap(w.t())


class Hostile(unittest.TestCase):
    def test_operands(self):
        x, w, bias, a, b, _ = (t.detach() for t in operands())

        def call(**given):
            named = dict(x=x, w=w, bias=bias, lora_a=a, lora_b=b, scaling=2.0, **{})
            return lowrank.lora_linear(**{**named, **given})

        good = call()
        for code, words, given in (
            ("ERR_SHAPE", ("K = 64", "[3, 5, 63]"), {"x": x[..., :63]}),
            ("ERR_SHAPE", ("K = 64", "[]"), {"x": torch.tensor(1.0)}),
            ("ERR_SHAPE", ("[8, 64]", "[8, 60]"), {"lora_a": a[:, :60]}),
            ("ERR_SHAPE", ("loraB",), {"lora_b": b[:40]}),
            ("ERR_SHAPE", ("bias",), {"bias": bias[:47]}),
            ("ERR_SHAPE", ("[N, K]",), {"w": w[0]}),
            ("ERR_DTYPE", ("float64",), {"x": x.double()}),
            ("ERR_DTYPE", ("int64",), {"lora_a": a.long()}),
            ("ERR_DTYPE", ("bool",), {"w": w > 0}),
            ("ERR_DTYPE", ("code 5",), {"w": w + 0j}),
            ("ERR_DEVICE", ("meta",), {"bias": bias.to("meta")}),
            ("ERR_TYPE", ("memory",), {"lora_a": a.to_sparse()}),
            ("ERR_TYPE", ("both tensors",), {"lora_b": None}),
            ("ERR_TYPE", ("list",), {"w": [1, 2]}),
            ("ERR_TYPE", ("int",), {"lora_a": 7}),
            ("ERR_VALUE", ("dropout",), {"dropout": 1.0}),
            ("ERR_VALUE", ("scaling",), {"scaling": float("nan")}),
            ("ERR_VALUE", ("seed",), {"seed": 1 << 70}),
            ("ERR_SHAPE", ("dropoutMask",), {"dropout": 0.5, "mask": x[:1]}),
        ):  # fmt: skip
            with self.subTest(code=code, words=words), refused(self, code, *words):
                call(**given)
            self.assertTrue(torch.equal(call(), good))

    def test_memory_of_a_gpu_is_described_as_such(self):
        class OnGpu:
            """What `call` asks of a tensor; no machine has 64 GPUs."""

            def __init__(self, like):
                self.like, self.is_cpu, self.is_cuda = like, False, True

            def get_device(self):
                return 63

            def __getattr__(self, name):
                return getattr(self.like, name)

        x, w = OnGpu(torch.ones(2, 8)), torch.ones(4, 8)
        weight, y = lowrank.Weight.wrap(w), OnGpu(torch.empty(2, 4))
        stream = types.SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
        with mock.patch("torch.cuda.current_stream", lambda device: stream):
            with refused(self, "ERR_DEVICE", "cuda:63", "host"):
                call("matmul", x, weight.handle, 0, y)
            name, made = ctypes.create_string_buffer(b"nf4"), ctypes.byref(ctypes.c_void_p())
            with refused(self, "ERR_DEVICE", "cuda:63"):
                call(
                    "weight_quantize",
                    OnGpu(torch.ones(4, 8)),
                    ctypes.addressof(name),
                    0,
                    result=made,
                )

    def test_a_trained_weight(self):
        x, w, bias, a, b, _ = operands()
        with refused(self, "ERR_UNSUPPORTED", "frozen"):
            lowrank.lora_linear(x, w.requires_grad_(), bias, a, b, 2.0)
        with refused(self, "ERR_UNSUPPORTED", "frozen"):
            torch.ops.lowrank.lora_linear(x, w, bias, a, b, 2.0)

    def test_a_weight_that_is_gone(self):
        x, w, bias, a, b, _ = operands()
        number = lowrank.Weight.quantize(w, "nf4").number
        with refused(self, "ERR_DISPOSED", str(number)):
            torch.ops.lowrank.lora_linear(x, None, bias, a, b, 2.0, 0.0, 0, None, None, number, 48)


if __name__ == "__main__":
    unittest.main()
