"""The frozen weight of a patched layer as the kernels read it, made anew when it is assigned."""

import torch
from torch import nn

from .weights import Weight, dense_weight, register


def quantised_already(module):
    """Are the weight's bytes those of bitsandbytes?"""
    weight = module.weight
    return getattr(weight, "quant_state", None) is not None or weight.dtype == torch.int8


class Base:
    """Of `module`, which holds `weight`: [N, K], or [K, N] where `transposed`.

    A dense weight is read in torch's memory. Copies are made of a quantised or transposed one, and
    under autocast in its dtype."""

    def __init__(self, module, format, transposed):
        weight = module.weight
        self.module, self.format, self.transposed, self.dtype = (
            module,
            format,
            transposed,
            weight.dtype,
        )
        # Bytes of bitsandbytes are never taken from their module.
        self.foreign = quantised_already(module)
        self.drops = False
        self.made = {}  # by dtype, None if quantised: (the tensor it was made of, the Weight)
        self.number = register(self)
        self.shape = tuple(weight.shape[::-1] if transposed else weight.shape)
        if format is not None or self.foreign:
            self.shape = self.resolve().shape

    def drop(self):
        """From now on torch keeps no weight of which there is a quantised copy. Its parameter is
        empty, and state_dict() and load_state_dict() use the copy."""
        if self.format is None or self.foreign or self.drops:
            return
        self.drops = True
        self._drop(self.module.weight)
        if _add_weight not in self.module._state_dict_hooks.values():
            self.module._register_state_dict_hook(_add_weight)
            self.module._register_load_state_dict_pre_hook(_take_weight, with_module=True)

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.number = register(self)

    @property
    def dropped(self):
        return self.drops and self.module.weight.numel() == 0

    def tensor(self, dtype):
        """The weight, if activations of `dtype` are multiplied by torch's own memory; else None."""
        if self.format is not None or self.foreign or self.transposed:
            return None
        weight = self.module.weight
        fits = weight.dtype == dtype or weight.dtype != torch.float32 or dtype is None
        return weight if fits and weight.is_contiguous() else None

    def resolve(self, dtype=None):
        """The Weight for activations of `dtype`."""
        if self.dropped:
            return self.made[None][1]
        weight = self.tensor(dtype)
        if weight is not None:
            return dense_weight(weight)
        weight = self.module.weight
        key = dtype if self.format is None and not self.foreign else None
        source = (weight.data_ptr(), weight._version, weight.dtype, weight.shape, weight.device)
        found = self.made.get(key)
        if found is None or found[0] != source:
            found = self.made[key] = (source, self._make(weight.detach(), key))
            if self.drops:
                self._drop(weight)
        return found[1]

    def _make(self, weight, dtype):
        if self.foreign:
            return Weight.from_bitsandbytes(self.module)
        if self.transposed:
            weight = weight.t()
        if self.format is not None:
            return Weight.quantize(weight, self.format)
        return Weight.wrap(weight.to(dtype or weight.dtype).contiguous())

    def _drop(self, weight):
        self.dtype = weight.dtype
        self.module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def dense(self):
        """The values of the dropped weight, with the rounding of its format."""
        values = self.made[None][1].dequantize(self.dtype, self.module.weight.device)
        return values.t().contiguous() if self.transposed else values

    def restore(self):
        if self.dropped:
            self.module.weight = nn.Parameter(self.dense(), requires_grad=False)
        self.drops = False


def _base_of(module):
    patched = module.__dict__.get("_lowrank")
    return None if patched is None else patched.base


def _add_weight(module, state, prefix, _):
    """A state_dict has the weight that torch no longer keeps."""
    base = _base_of(module)
    if base is not None and base.dropped and f"{prefix}weight" in state:
        state[f"{prefix}weight"] = base.dense()


def _take_weight(module, state, prefix, *_):
    """A weight that is loaded replaces the quantised one, and is not kept either."""
    base = _base_of(module)
    name = f"{prefix}weight"
    if base is None or not base.dropped or name not in state:
        return
    expected = base.shape[::-1] if base.transposed else base.shape
    if tuple(state[name].shape) != tuple(expected):
        return  # torch says so
    module.weight = nn.Parameter(state[name].to(base.dtype), requires_grad=False)
    base.resolve()
    state[name] = module.weight.detach()
