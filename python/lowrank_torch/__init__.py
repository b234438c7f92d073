"""LoRA and QLoRA layers of PyTorch on the kernels of lowrank, over liblowrank.so.1.

    import lowrank_torch as lowrank
    lowrank.patch(model, format="nf4")

docs/pytorch.md describes it.
"""

from .calls import reference
from .errors import LowrankError
from .library import library, memory
from .module import LoraLinear
from .op import lora_linear
from .patch import Report, patch, unpatch
from .weights import Weight

__all__ = [
    "LoraLinear",
    "LowrankError",
    "Report",
    "Weight",
    "library",
    "lora_linear",
    "memory",
    "patch",
    "reference",
    "unpatch",
]
