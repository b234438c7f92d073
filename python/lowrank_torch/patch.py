"""patch() and unpatch(): the forward of layers with an adapter, replaced in place."""

import functools
import warnings

import torch

from .attention import with_attention
from .base import Base, quantised_already
from .errors import refuse
from .layers import KINDS, Frozen
from .op import lora_linear


class Report:
    """What patch() did, by names of layers: `adapters`, `frozen`, and `skipped` with a reason each."""

    def __init__(self):
        self.adapters, self.frozen, self.skipped = [], [], {}

    def __repr__(self):
        text = f"patched {len(self.adapters)} layers with an adapter and {len(self.frozen)} frozen"
        return text + "".join(f"\n  {name} left alone: {why}" for name, why in self.skipped.items())


class Patched:
    """What a patched layer remembers, in its attribute `_lowrank`. unpatch() leaves a `permanent` one."""

    def __init__(self, module, kind, base, dropout, permanent=False):
        self.kind, self.base, self.dropout, self.permanent = kind, base, dropout, permanent
        self.own_forward = module.__dict__.get("forward")  # another program's, on the instance
        self.merges = None

    def attach(self, module):
        module._lowrank = self
        module.forward = functools.partial(_forward, module)

    def drop(self, module):
        """Drops torch's weight where there is a quantised copy."""
        self.base.drop()
        if self.base.drops and "merge_weights" in module.__dict__:
            self.merges = module.merge_weights
            # loralib's eval() would write to a weight that is not there.
            module.merge_weights = False

    def original(self, module, *args, **kwargs):
        if self.own_forward is not None:
            return self.own_forward(*args, **kwargs)
        return type(module).forward(module, *args, **kwargs)


def forward_of(kind, base, dropout_by, module, x):
    """y of a layer; None if its own forward has to compute it."""
    adapter = kind.adapter(module)
    if adapter is False or base.module.weight.requires_grad:
        return None
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    w = base.tensor(x.dtype)
    if w is None and not base.dropped and getattr(module, "merged", False):
        return None  # adapters are merged by way of weight.data, which no version counts
    bias = base.module.bias
    if adapter is None:
        return lora_linear(x, base if w is None else w, bias, None, None, 1.0)
    seed, mask = 0, None
    if adapter.dropout > 0:
        if dropout_by == "torch" or torch.compiler.is_compiling():
            mask = torch.empty_like(x).bernoulli_(1 - adapter.dropout)
        else:
            seed = int(torch.randint(-(1 << 63), (1 << 63) - 1, ()))
    return lora_linear(x, base if w is None else w, bias, adapter.a, adapter.b, adapter.scaling,
                       adapter.dropout, seed, mask=mask, lora_bias=adapter.bias)  # fmt: skip


def _forward(self, x, *args, **kwargs):
    patched = self._lowrank
    if not args and not kwargs and isinstance(x, torch.Tensor):
        y = forward_of(patched.kind, patched.base, patched.dropout, self, x)
        if y is not None:
            return y
    return patched.original(self, x, *args, **kwargs)


def _shared(model):
    """Weights that several layers hold, such as that of a head tied to the embedding."""
    seen, shared = set(), set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            (shared if id(weight) in seen else seen).add(id(weight))
    return shared


def _reason(kind, module, format):
    """Why a layer is left alone, or None."""
    why = kind.refusal(module)
    if why is not None:
        return why
    if format is not None and getattr(module, "merged", False):
        return "its adapter is merged into the weight, which a copy would keep"
    weight = kind.base(module).weight
    if weight.requires_grad:
        return "its weight is trained"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its weight is on {weight.device}"
    if quantised_already(kind.base(module)) or weight.dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ):
        return None
    return f"its weight is {str(weight.dtype).replace('torch.', '')}"


def _adapts(module):
    patched = module.__dict__.get("_lowrank")
    return hasattr(module, "lowrank_base") or (patched is not None and patched.kind is not Frozen)


def _parents(model):
    """Modules that hold a layer with an adapter, such as the one of attention its projections."""
    for module in model.modules():
        if (
            not _adapts(module)
            and "_lowrank" not in module.__dict__
            and any(map(_adapts, module.children()))
        ):
            yield module


def _plan(model, format, drops, dropout, report):
    """(layer, what it will remember) for each; the model is not changed yet."""
    shared = _shared(model)
    planned = {}
    for name, module in model.named_modules():
        kind = next((kind for kind in KINDS if kind.matches(module)), None)
        if kind is None or module in planned or "_lowrank" in module.__dict__:
            continue
        why = _reason(kind, module, format)
        if why is not None:
            report.skipped[name] = why
            continue
        holder = kind.base(module)
        quantised = None if kind is Frozen or id(holder.weight) in shared else format
        base = Base(holder, quantised, kind.transposed(module))
        planned[module] = Patched(module, kind, base, dropout)
        if drops or quantised is None:
            # PEFT and other programs call the base of a layer by itself.
            planned.setdefault(holder, Patched(holder, Frozen, base, dropout))
        (report.frozen if kind is Frozen else report.adapters).append(name)
    return planned.items()


def patch(model, format=None, keep_weight=True, dropout="lowrank", attention=True):
    """Replaces the forward of layers with a LoRA adapter (loralib.Linear, PEFT's lora.Linear, and
    layers with the attributes of either) and of frozen nn.Linear layers, in place.

    :param format: of the base weights below an adapter: None leaves them as they are; "nf4", "fp4",
        "int8", ... quantises a copy
    :param keep_weight: False drops torch's weight where there is a quantised copy. state_dict() then
        has the values of the copy
    :param dropout: "lowrank" draws masks in the kernels, from a seed of torch's generator; "torch"
        draws the masks that the unpatched model would have
    :param attention: True: F.scaled_dot_product_attention is the library's in modules that hold
        such a layer, where it is causal, without a mask and dropout, in f32 or bf16 on the CPU
    :returns: a Report of what was patched, and of what was left alone and why
    :raises LowrankError: ERR_VALUE for another `dropout`, ERR_FORMAT for an unknown format. The
        model is then as it was"""
    if dropout not in ("lowrank", "torch"):
        refuse("ERR_VALUE", "patch: dropout", "one of lowrank, torch", f'"{dropout}"')
    unpatch(model)
    report = Report()
    for module, patched in _plan(model, format, not keep_weight, dropout, report):
        patched.attach(module)
        if not keep_weight:
            patched.drop(module)
    for module in _parents(model) if attention else ():
        Around(module).attach(module)
    for name, why in report.skipped.items():
        warnings.warn(f"lowrank: {name or 'the model'} is left alone: {why}", stacklevel=2)
    return report


class Around:
    """What a module with patched layers remembers, in `_lowrank_around`: it calls their attention."""

    def __init__(self, module):
        self.own_forward = module.__dict__.get("forward")

    def attach(self, module):
        module._lowrank_around = self
        module.forward = functools.partial(_forward_around, module)

    def detach(self, module):
        del module._lowrank_around, module.forward
        if self.own_forward is not None:
            module.forward = self.own_forward


def _forward_around(module, *args, **kwargs):
    own = module._lowrank_around.own_forward
    forward = functools.partial(type(module).forward, module) if own is None else own
    return with_attention(forward, *args, **kwargs)


def unpatch(model):
    """Gives layers their own forward back, and their weights: dropped ones have the rounding of
    their format."""
    for module in model.modules():
        if "_lowrank_around" in module.__dict__:
            module._lowrank_around.detach(module)
        patched = module.__dict__.get("_lowrank")
        if patched is None or patched.permanent:
            continue
        del module._lowrank
        patched.base.restore()
        if patched.merges is not None:
            module.merge_weights = patched.merges
        del module.forward
        if patched.own_forward is not None:
            module.forward = patched.own_forward
