"""patch() and unpatch(): which layers, which weights, and that programs around them keep working."""

import copy
import functools
import io
import unittest
import warnings

import torch
from torch import nn

from shapes import Gpt, Loralib, Peft, bitsandbytes_linear, distance, lowrank, refused, train


def alike(case, layer, patched, bound=2e-6, x=None):
    """Both have the same y and gradients."""
    x = torch.randn(5, layer_width(layer)) if x is None else x
    results = []
    for each in (layer, patched):
        each.zero_grad(set_to_none=True)
        given = x.clone().requires_grad_()
        y = each(given)
        y.backward(torch.ones_like(y))
        results.append([y, given.grad] + [p.grad for p in each.parameters() if p.requires_grad])
    for got, wanted in zip(results[1], results[0]):
        if wanted is not None:
            case.assertLess(distance(got, wanted), bound)


def layer_width(layer):
    return layer.in_features if hasattr(layer, "in_features") else layer.base_layer.in_features


class Layers(unittest.TestCase):
    def check(self, layer, **options):
        patched = copy.deepcopy(layer)
        report = lowrank.patch(patched, **options)
        self.assertEqual(len(report.adapters), 1, report)
        self.assertIn("forward", patched.__dict__)
        alike(self, layer, patched)
        return patched

    def test_loralib(self):
        torch.manual_seed(0)
        self.check(Loralib(64, 48))
        self.check(Loralib(64, 48, fan_in_fan_out=True))
        layer = Loralib(64, 48)
        layer.bias.requires_grad_(False)
        self.check(layer)

    def test_loralib_merges(self):
        layer = Loralib(64, 48)
        for each in (layer, Loralib(64, 48, fan_in_fan_out=True)):
            for format in (None, "nf4"):
                patched = copy.deepcopy(each)
                lowrank.patch(patched, format)
                before = patched(torch.ones(1, 64))
                wanted = each.eval()(torch.ones(1, 64))
                self.assertLess(distance(patched.eval()(torch.ones(1, 64)), wanted), 2e-6)
                each.train()
                self.assertLess(distance(patched.train()(torch.ones(1, 64)), before), 2e-6)

    def test_loralib_merged_before(self):
        layer = Loralib(64, 48).eval()
        with self.assertWarnsRegex(UserWarning, "merged"):
            self.assertEqual(lowrank.patch(layer, "nf4", keep_weight=False).adapters, [])
        wanted = layer(torch.ones(1, 64))
        self.assertEqual(lowrank.patch(layer).adapters, [""])
        self.assertLess(distance(layer(torch.ones(1, 64)), wanted), 2e-6)
        self.assertLess(distance(layer.train()(torch.ones(1, 64)), wanted), 2e-6)

    def test_a_base_of_turned_weights(self):
        class Conv1D(nn.Module):
            """That of transformers: weight [K, N]."""

            def __init__(self, K, N):
                super().__init__()
                self.in_features, self.out_features = K, N
                self.weight, self.bias = nn.Parameter(torch.randn(K, N)), nn.Parameter(
                    torch.randn(N)
                )

            def forward(self, x):
                return x @ self.weight + self.bias

        torch.manual_seed(0)
        layer = self.check(Peft(Conv1D(64, 48)))
        plain = copy.deepcopy(layer)
        lowrank.unpatch(plain)
        lowrank.patch(layer, "nf4", keep_weight=False)
        self.assertEqual(layer.state_dict()["base_layer.weight"].shape, (64, 48))
        plain.load_state_dict(layer.state_dict())
        alike(self, plain, layer)

    def test_peft(self):
        torch.manual_seed(0)
        self.check(Peft(nn.Linear(64, 48)))
        self.check(Peft(nn.Linear(64, 48, bias=False), lora_bias=True))
        layer = Peft(nn.Linear(64, 48))
        layer.add("second", 4, 4)
        self.check(layer)

    def test_peft_switches(self):
        torch.manual_seed(0)
        layer = Peft(nn.Linear(64, 48))
        layer.add("second", 4, 4)
        patched = copy.deepcopy(layer)
        lowrank.patch(patched)
        for active in (["default"], ["second"], ["default", "second"], [], ["elsewhere"]):
            layer.active_adapters = patched.active_adapters = active
            alike(self, layer, patched)
        layer.active_adapters = patched.active_adapters = ["second"]
        for disable in (True, False):
            layer.disable_adapters = patched.disable_adapters = disable
            alike(self, layer, patched)
        for format in (None, "nf4"):
            lowrank.patch(patched, format)
            layer.merge(), patched.merge()
            alike(self, layer, patched)
            layer.unmerge(), patched.unmerge()

    def test_a_variant_of_lora_keeps_its_forward(self):
        class Variant(Peft):
            """Twice the output where `use_dora` is set, so that the rule of LoRA is wrong by half."""

            def forward(self, x):
                return super().forward(x) * (2 if self.use_dora[self.active_adapters[0]] else 1)

        torch.manual_seed(0)
        layer = Variant(nn.Linear(64, 48))
        patched = self.check(layer)
        for variant in (True, False):
            layer.use_dora["default"] = patched.use_dora["default"] = variant
            alike(self, layer, patched)

    def test_frozen_and_trained_layers(self):
        model = nn.Sequential(
            nn.Linear(64, 48).requires_grad_(False),
            nn.Linear(48, 8),
            nn.Linear(8, 4, dtype=torch.float64),
        )
        model[0].bias.requires_grad_(True)
        model[2].requires_grad_(False)
        with self.assertWarnsRegex(UserWarning, "2 is left alone: its weight is float64"):
            report = lowrank.patch(model)
        self.assertEqual((report.adapters, report.frozen), ([], ["0"]))
        self.assertEqual(report.skipped, {"2": "its weight is float64"})
        self.assertNotIn("forward", model[1].__dict__)
        lowrank.unpatch(model)
        plain, model = copy.deepcopy(model[:2]), model[:2]
        lowrank.patch(model)
        alike(self, plain, model, x=torch.randn(3, 64))
        model[0].weight.requires_grad_(True)  # trained from now on: its own forward
        model[0](torch.ones(1, 64)).sum().backward()
        self.assertIsNotNone(model[0].weight.grad)

    def test_what_is_left_alone(self):
        nowhere = Loralib(8, 8).to("meta")
        dora, trained, odd, groups = (
            Peft(nn.Linear(8, 8)),
            Loralib(8, 8),
            Loralib(8, 8),
            Loralib(8, 8),
        )
        dora.use_dora["default"] = True
        trained.weight.requires_grad_(True)
        odd.lora_dropout = nn.AlphaDropout(0.5)
        groups.enable_lora = [True, False]
        model = nn.ModuleList([dora, trained, odd, groups, nowhere])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = lowrank.patch(model)
        self.assertEqual(report.adapters, [])
        self.assertEqual(len([w for w in caught if "left alone" in str(w.message)]), 5)
        for name, word in zip("01234", ("DoRA", "trained", "AlphaDropout", "enable_lora", "meta")):
            self.assertIn(word, report.skipped[name])
            self.assertIn(word, repr(report))

    def test_layers_that_compute_something_else(self):
        class Gated(Loralib):
            def forward(self, x):
                return super().forward(x) + 0.2 * (x @ self.lora_A.t() @ self.lora_B.t())

        class Other(Loralib):
            def forward(self, x, gate):
                return super().forward(x) * gate

        torch.manual_seed(0)
        for kind in (Gated, Other):
            for dtype in (torch.float32, torch.bfloat16):
                layer = kind(64, 48, dropout=0.5).to(dtype)
                nn.init.zeros_(layer.lora_B)
                with self.assertWarnsRegex(UserWarning, "its forward is not"):
                    self.assertEqual(lowrank.patch(layer).adapters, [])
                self.assertEqual(layer.lora_B.abs().sum().item(), 0)
                self.assertTrue(layer.lora_dropout.training)
        state = torch.get_rng_state()
        layer = Loralib(64, 48, dropout=0.5).to(torch.bfloat16)
        torch.set_rng_state(state)
        self.assertEqual(lowrank.patch(layer).adapters, [""])
        self.assertTrue(torch.equal(torch.get_rng_state(), state))

    def test_bitsandbytes(self):
        weight = lowrank.Weight.quantize(torch.randn(48, 128), "nf4", double_quant=True)
        for made in (weight, lowrank.Weight.quantize(torch.randn(48, 128), "int8", rowwise=True)):
            layer = Peft(nn.Linear(128, 48, bias=False))
            layer.base_layer.weight.data = made.dequantize()
            plain = copy.deepcopy(layer)
            layer.base_layer = bitsandbytes_linear(made)
            report = lowrank.patch(layer)
            self.assertEqual(report.adapters, [""])
            alike(self, plain, layer, x=torch.randn(5, 128))

    def test_unpatch(self):
        model = Gpt()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        own = [name for name, module in model.named_modules() if "forward" in module.__dict__]
        hooked = model.blocks[0].up
        wrapped = hooked.forward = functools.partial(Loralib.forward, hooked)
        lowrank.patch(model)
        self.assertIn("forward", model.blocks[1].up.__dict__)
        self.assertIsNot(hooked.forward, wrapped)
        lowrank.unpatch(model)
        self.assertIs(hooked.forward, wrapped)
        del hooked.forward
        self.assertEqual(
            own, [name for name, module in model.named_modules() if "forward" in module.__dict__]
        )
        self.assertFalse(any("_lowrank" in module.__dict__ for module in model.modules()))
        for name, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(tensor, before[name]), name)

    def test_refusals_leave_the_model(self):
        model = Gpt()
        with refused(self, "ERR_VALUE", "lowrank, torch", "numpy"):
            lowrank.patch(model, dropout="numpy")
        model.blocks[1].up.weight.data[0, 0] = float("inf")
        with refused(self, "ERR_NON_FINITE"):
            lowrank.patch(model, "nf4", keep_weight=False)
        self.assertFalse(any("_lowrank" in module.__dict__ for module in model.modules()))
        self.assertEqual(model.blocks[0].up.weight.numel(), 4 * 64 * 64)
        with refused(self, "ERR_FORMAT", "nf3"):
            lowrank.patch(model, "nf3")


class Weights(unittest.TestCase):
    def test_assigned_weights_are_read_again(self):
        for format, bound in ((None, 2e-6), ("nf4", 0.12), ("int8", 0.02)):
            for turned in (False, True):
                layer = Loralib(64, 48, fan_in_fan_out=turned, merge_weights=False)
                lowrank.patch(layer, format)
                x = torch.randn(3, 64)
                for way in ("copy_", "data", "parameter", "load"):
                    layer(x)
                    new = torch.randn_like(layer.weight)
                    if way == "copy_":
                        with torch.no_grad():
                            layer.weight.copy_(new)
                    elif way == "data":
                        layer.weight.data = new
                    elif way == "parameter":
                        layer.weight = nn.Parameter(new, requires_grad=False)
                    else:
                        layer.load_state_dict({**layer.state_dict(), "weight": new})
                    plain = type(layer).forward(layer, x)
                    self.assertLess(distance(layer(x), plain), bound, f"{format} {way}")

    def test_dropped_weights(self):
        for kind in ("loralib", "peft"):
            torch.manual_seed(1)
            model = Gpt(kind)
            linear = 2 * 12 * 64 * 64
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            live = lowrank.memory()["live_bytes"]
            lowrank.patch(model, "nf4", keep_weight=False)
            self.assertLess(lowrank.memory()["live_bytes"] - live, 0.15 * 4 * linear)
            left = sum(
                p.numel()
                for name, p in model.named_parameters()
                if name.startswith("blocks") and p.requires_grad is False and p.dim() == 2
            )
            self.assertEqual(left, 0)
            state = model.state_dict()
            self.assertEqual(
                [(n, t.shape) for n, t in state.items()], [(n, t.shape) for n, t in before.items()]
            )
            for name, tensor in state.items():
                self.assertLess(distance(tensor, before[name]), 0.12, name)
            # Values of the format survive a round trip without a change.
            other = Gpt(kind)
            lowrank.patch(other, "nf4", keep_weight=False)
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            other.load_state_dict(torch.load(file))
            ids = torch.zeros(1, 8, dtype=torch.long)
            self.assertTrue(torch.equal(other(ids, ids), model(ids, ids)))
            for name, tensor in other.state_dict().items():
                self.assertTrue(torch.equal(tensor, state[name]), name)
            lowrank.unpatch(other)
            self.assertLess(distance(other(ids, ids), model(ids, ids)), 1e-6)
            with self.assertRaisesRegex(RuntimeError, "size mismatch"):
                model.load_state_dict(
                    {
                        n: t[:4] if n == "blocks.0.up.weight" or "base_layer.weight" in n else t
                        for n, t in state.items()
                    }
                )

    def test_shared_weights_are_not_quantised(self):
        model = Gpt()
        model.head.weight = model.token.weight
        model.blocks[1].up.weight = model.blocks[0].up.weight
        lowrank.patch(model, "nf4", keep_weight=False)
        self.assertEqual(model.token.weight.numel(), 96 * 64)
        self.assertIs(model.blocks[1].up.weight, model.blocks[0].up.weight)
        self.assertEqual(model.blocks[1].up.weight.numel(), 256 * 64)
        train(model, 1)

    def test_other_dtypes(self):
        model = Gpt()
        lowrank.patch(model)
        ids = torch.zeros(1, 8, dtype=torch.long)
        model(ids, ids)
        model.to(torch.bfloat16)
        plain = copy.deepcopy(model)
        lowrank.unpatch(plain)
        self.assertLess(distance(model(ids, ids), plain(ids, ids)), 1e-2)


class Around(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(2)
        self.ids = torch.randint(96, (2, 32))

    def gradients(self, model):
        model.zero_grad(set_to_none=True)
        model(self.ids, self.ids).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    def compare(self, got, wanted, bound=1e-6):
        for name, gradient in wanted.items():
            self.assertLess(distance(got[name], gradient), bound, name)

    def test_checkpointing(self):
        for dropout in (0.0, 0.5):
            model = Gpt(dropout=dropout)
            lowrank.patch(model, "nf4")
            torch.manual_seed(3)
            wanted = self.gradients(model)
            model.checkpointed = True
            torch.manual_seed(3)
            self.compare(self.gradients(model), wanted)

    def test_hooks(self):
        model = Gpt()
        lowrank.patch(model)
        seen = []
        layer = model.blocks[0].up
        layer.register_forward_pre_hook(lambda module, given: seen.append("before"))
        layer.register_forward_hook(lambda module, given, y: seen.append(tuple(y.shape)))
        layer.register_full_backward_hook(lambda module, dx, dy: seen.append(tuple(dx[0].shape)))
        self.gradients(model)
        self.assertEqual(seen, ["before", (2, 32, 256), (2, 32, 64)])

    def test_compile(self):
        for format, keep in ((None, True), ("nf4", False)):
            model = Gpt("peft")
            lowrank.patch(model, format, keep)
            wanted = self.gradients(model)
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            self.compare(
                self.gradients(compiled), {f"_orig_mod.{name}": g for name, g in wanted.items()}
            )

    def test_autocast(self):
        for format in (None, "nf4"):
            model = Gpt()
            plain = copy.deepcopy(model)
            lowrank.patch(model, format)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                self.assertEqual(model.blocks[0].up(torch.randn(2, 64)).dtype, torch.bfloat16)
                got, wanted = self.gradients(model), self.gradients(plain)
            exact = self.gradients(plain)
            if format is None:
                for name, gradient in exact.items():
                    limit = 1.5 * distance(wanted[name], gradient)
                    self.assertLess(distance(got[name], gradient), limit, name)

    def test_copies_and_pickles(self):
        for format, keep in ((None, True), ("nf4", True), ("nf4", False)):
            model = Gpt("peft")
            lowrank.patch(model, format, keep)
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            wanted = self.gradients(model)
            for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
                self.assertIs(
                    again.blocks[0].up._lowrank.base.module, again.blocks[0].up.base_layer
                )
                self.assertNotEqual(
                    again.blocks[0].up._lowrank.base.number, model.blocks[0].up._lowrank.base.number
                )
                self.compare(self.gradients(again), wanted)

    def test_torch_dropout_has_the_masks_of_torch(self):
        for kind in ("loralib", "peft"):
            model = Gpt(kind, dropout=0.3)
            plain = copy.deepcopy(model)
            lowrank.patch(model, dropout="torch")
            torch.manual_seed(5)
            got = self.gradients(model)
            torch.manual_seed(5)
            self.compare(got, self.gradients(plain))

    def test_own_dropout_depends_on_the_generator_and_stops_in_eval(self):
        model = Gpt("peft", dropout=0.5)
        lowrank.patch(model)

        def loss(seed):
            torch.manual_seed(seed)
            return model(self.ids, self.ids).item()

        self.assertEqual(loss(1), loss(1))
        self.assertNotEqual(loss(1), loss(2))
        model.eval()
        self.assertEqual(loss(1), loss(2))

    def test_module(self):
        layer = lowrank.LoraLinear(64, 48, 8, 16)
        names = [
            "base_layer.weight",
            "base_layer.bias",
            "lora_A.default.weight",
            "lora_B.default.weight",
        ]
        self.assertEqual(sorted(layer.state_dict()), sorted(names))
        self.assertEqual([n for n, p in layer.named_parameters() if p.requires_grad], names[2:])
        other = Peft(nn.Linear(64, 48))
        layer.load_state_dict(other.state_dict())
        alike(self, other, layer)
        quantised = lowrank.LoraLinear.from_linear(other.base_layer, 8, 16, "nf4")
        quantised.load_state_dict(
            {**other.state_dict(), "base_layer.weight": quantised.state_dict()["base_layer.weight"]}
        )
        other.base_layer.weight.data = quantised.weight.dequantize()
        alike(self, other, quantised)
        self.assertIn("base=nf4", repr(quantised))
        model = nn.Sequential(quantised)
        self.assertEqual(lowrank.patch(model).adapters, [])
        lowrank.unpatch(model)
        alike(self, other, quantised)
        alike(self, other, copy.deepcopy(quantised))
        with refused(self, "ERR_VALUE", "positive integer", "0"):
            lowrank.LoraLinear(8, 8, 0, 1)
        with refused(self, "ERR_UNSUPPORTED", "frozen"):
            layer.requires_grad_(True)(torch.ones(1, 64))


if __name__ == "__main__":
    unittest.main()
