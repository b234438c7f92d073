"""LoraLinear, a layer with an adapter for models that are written for this package."""

import math

from torch import nn

from .base import Base
from .errors import refuse
from .layers import Frozen, Peft
from .patch import Patched, forward_of

_NAME = "default"


class LoraLinear(nn.Module):
    """y = x · wᵀ + bias + lora_alpha / r · drop(x) · Aᵀ · Bᵀ, with w frozen and B at first 0.

    Parameters have the names of PEFT: base_layer.weight [out, in], base_layer.bias [out],
    lora_A.default.weight [r, in], lora_B.default.weight [out, r].

    :param format: of the base weight; torch then keeps none, and state_dict() has its values
    :param dropout: probability for elements of x
    :raises LowrankError: ERR_VALUE for an r below 1, ERR_FORMAT for an unknown format"""

    def __init__(self, in_features, out_features, r, lora_alpha, format=None, bias=True, dropout=0.0,
                 device=None, dtype=None):  # fmt: skip
        super().__init__()
        if not isinstance(r, int) or r < 1:
            refuse("ERR_VALUE", "LoraLinear: r", "a positive integer", repr(r))
        like = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.r, self.lora_alpha = (
            in_features,
            out_features,
            r,
            lora_alpha,
        )
        self.base_layer = nn.Linear(in_features, out_features, bias=bias, **like)
        self.base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({_NAME: nn.Linear(in_features, r, bias=False, **like)})
        self.lora_B = nn.ModuleDict({_NAME: nn.Linear(r, out_features, bias=False, **like)})
        self.lora_dropout = nn.ModuleDict({_NAME: nn.Dropout(dropout)})
        self.scaling = {_NAME: lora_alpha / r}
        self.active_adapters = [_NAME]
        self.reset_adapter()
        self._take_base(format)

    @classmethod
    def from_linear(cls, linear, r, lora_alpha, format=None, dropout=0.0):
        """Takes over weight and bias of an nn.Linear, which is not changed."""
        weight = linear.weight
        made = cls(linear.in_features, linear.out_features, r, lora_alpha, None, linear.bias is not None,
                   dropout, weight.device, weight.dtype)  # fmt: skip
        made.base_layer.load_state_dict(linear.state_dict())
        made._take_base(format)
        return made

    def reset_adapter(self):
        """The start of PEFT: A as nn.Linear has it, B = 0."""
        nn.init.kaiming_uniform_(self.lora_A[_NAME].weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B[_NAME].weight)

    def _take_base(self, format):
        self.lowrank_base = Base(self.base_layer, format, False)
        self.lowrank_base.drop()
        Patched(self.base_layer, Frozen, self.lowrank_base, "lowrank", True).attach(self.base_layer)

    @property
    def weight(self):
        """The base weight as a `Weight`."""
        return self.lowrank_base.resolve()

    def forward(self, x):
        y = forward_of(Peft, self.lowrank_base, "lowrank", self, x)
        if y is None:
            refuse("ERR_UNSUPPORTED", "LoraLinear: base_layer.weight", "frozen, below one adapter",
                   "a trained weight, or an adapter that is not plain LoRA")  # fmt: skip
        return y

    def extra_repr(self):
        weight = self.weight
        return f"{self.in_features}, {self.out_features}, r={self.r}, base={weight.format}"
