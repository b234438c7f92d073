"""F.scaled_dot_product_attention in a patched model."""

import copy
import unittest
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from shapes import Gpt, Loralib, distance, lowrank, refused
from lowrank_torch import LoraLinear
from lowrank_torch.attention import _Attention, with_attention


def heads(B, H, T, D, dtype=torch.float32, seed=0):
    """[B, H, T, D] as a view of [B, T, H, D]."""
    x = torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_(), x.transpose(1, 2)


def ours(*args, **kwargs):
    return with_attention(F.scaled_dot_product_attention, *args, **kwargs)


def name_of(y):
    return type(y.grad_fn).__name__


class Attention(unittest.TestCase):
    def compare(self, q, k, v, bound, **options):
        leaves, views = zip(q, k, v)
        y = ours(*views, is_causal=True, **options)
        self.assertEqual(name_of(y), "_AttentionBackward")
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        wanted = F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in exact), is_causal=True, **options
        )
        self.assertEqual((y.dtype, y.shape), (q[0].dtype, wanted.shape))
        self.assertLess(distance(y, wanted), bound)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
        for g, t in zip(
            torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, exact, dy.double())
        ):
            self.assertLess(distance(g, t), bound)

    def test_values(self):
        for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
            for B, H, T, D in ((2, 4, 33, 16), (1, 1, 1, 2), (3, 2, 64, 64), (1, 2, 7, 256)):
                self.compare(*(heads(B, H, T, D, dtype, seed) for seed in range(3)), bound)

    def test_options(self):
        q, k, v = heads(2, 4, 9, 16), heads(2, 2, 9, 16, seed=1), heads(2, 2, 9, 16, seed=2)
        self.compare(q, k, v, 1e-6, enable_gqa=True)
        self.compare(q, heads(2, 4, 9, 16, seed=1), heads(2, 4, 9, 16, seed=2), 1e-6, scale=0.3)

    def test_heads_of_one_product(self):
        qkv = torch.randn(2, 9, 3 * 32, requires_grad=True)
        q, k, v = (t.view(2, 9, 4, 8).transpose(1, 2) for t in qkv.split(32, 2))
        y, wanted = ours(q, k, v, is_causal=True), F.scaled_dot_product_attention(
            q, k, v, is_causal=True
        )
        self.assertLess(distance(y, wanted), 1e-6)
        (g,), (t,) = (
            torch.autograd.grad(each.square().sum(), qkv, retain_graph=True) for each in (y, wanted)
        )
        self.assertLess(distance(g, t), 1e-6)

    def test_what_stays_with_torch(self):
        q, k, v = (heads(2, 4, 8, 16, seed=seed)[1] for seed in range(3))
        mask = torch.ones(8, 8, dtype=torch.bool).tril()
        odd = [heads(1, 2, 8, 15, seed=seed)[1] for seed in range(3)]
        for operands, options in (
            ((q, k, v), {}),
            ((q, k, v), {"attn_mask": mask}),
            ((q, k, v), {"is_causal": True, "dropout_p": 0.5}),
            ((q[0], k[0], v[0]), {"is_causal": True}),
            ((q[:, :, :4], k, v), {"is_causal": True}),
            ((q.double(), k.double(), v.double()), {"is_causal": True}),
            (odd, {"is_causal": True}),
        ):
            torch.manual_seed(0)
            y = ours(*operands, **options)
            self.assertNotEqual(name_of(y), "_AttentionBackward")
            torch.manual_seed(0)
            self.assertTrue(torch.equal(y, F.scaled_dot_product_attention(*operands, **options)))

    def test_second_derivatives_are_refused(self):
        q, k, v = (heads(1, 2, 4, 8, seed=seed)[1] for seed in range(3))
        (dq,) = torch.autograd.grad(
            ours(q, k, v, is_causal=True).square().sum(), q, create_graph=True
        )
        with refused(self, "ERR_UNSUPPORTED", "first order"):
            dq.sum().backward()

    def test_which_modules_have_it(self):
        class Own(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                q = self.layer(x).view(1, 4, 2, 8).transpose(1, 2)
                return F.scaled_dot_product_attention(q, q, q, is_causal=True)

        x = torch.randn(1, 4, 16)
        for attention, layer in product((True, False), (Loralib, LoraLinear)):
            model = nn.Sequential(Own(layer(16, 16, 2, 4)))
            lowrank.patch(model, attention=attention)
            self.assertEqual(name_of(model(x)) == "_AttentionBackward", attention)
            self.assertEqual(name_of(copy.deepcopy(model)(x)) == "_AttentionBackward", attention)
            lowrank.unpatch(model)
            self.assertNotIn("forward", model[0].__dict__)
            self.assertNotEqual(name_of(model(x)), "_AttentionBackward")
        model = Gpt()
        lowrank.patch(model)
        self.assertIn("forward", model.blocks[0].__dict__)
        self.assertNotIn("forward", model.__dict__)
        with self.assertRaises(RuntimeError):  # a failure leaves no mode behind
            model.blocks[0](torch.randn(1, 4, 3))
        q = heads(1, 2, 4, 8)[1]
        self.assertNotEqual(
            name_of(F.scaled_dot_product_attention(q, q, q, is_causal=True)), "_AttentionBackward"
        )

    def test_gradcheck_on_the_reference_device(self):
        # Differences of a smooth function: the error of their width and of single precision add.
        leaves = [heads(1, 2, 3, 4, seed=seed)[0] for seed in range(3)]
        with lowrank.reference():
            y = _Attention.apply(*(t.transpose(1, 2) for t in leaves), 0.5)
            dy = torch.randn_like(y)
            got = torch.autograd.grad(y, leaves, dy)
            for leaf, g in zip(leaves, got):
                direction = torch.randn_like(leaf)
                ends = []
                for step in (0.01, -0.01):
                    moved = [
                        t.detach() + step * direction if t is leaf else t.detach() for t in leaves
                    ]
                    ends.append(
                        (_Attention.apply(*(t.transpose(1, 2) for t in moved), 0.5) * dy)
                        .double()
                        .sum()
                    )
                slope = ((ends[0] - ends[1]) / 0.02).item()
                self.assertAlmostEqual(slope, (g * direction).double().sum().item(), delta=2e-3)


if __name__ == "__main__":
    unittest.main()
