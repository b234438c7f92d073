"""What a layer with an adapter computes, read off its attributes: no library of adapters is imported."""

import torch
from torch import nn


class Adapter:
    """scaling · (drop(x) · aᵀ · bᵀ + bias) beside a base product."""

    __slots__ = ("a", "b", "bias", "scaling", "dropout")

    def __init__(self, a, b, bias, scaling, dropout):
        self.a, self.b, self.bias, self.scaling, self.dropout = a, b, bias, scaling, dropout


def _probability(module):
    """Of a dropout layer; None for one that is not nn.Dropout."""
    if module is None or isinstance(module, nn.Identity):
        return 0.0
    if isinstance(module, nn.Dropout):
        return module.p if module.training else 0.0
    return 0.0 if isinstance(module, type(_probability)) else None  # loralib: lambda x: x


def _is_matrix(value):
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _computes_lora(m):
    """Does a layer compute what its attributes say? Two random rows tell, with a B that is not 0."""
    if not (m.weight.is_cpu or m.weight.is_cuda):
        return True  # refused for its device
    dropout = getattr(m, "lora_dropout", None)
    trains, m_b = getattr(dropout, "training", None), m.lora_B.data
    w = m.weight.detach()
    w = w.t() if Loralib.transposed(m) else w
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        x = torch.randn(2, w.shape[1], dtype=w.dtype, device=w.device)
        m.lora_B.data = torch.randn_like(m_b)
        if isinstance(dropout, nn.Module):
            dropout.training = False
        try:
            y = m.forward(x)
            wanted = nn.functional.linear(x, w, m.bias)
            if not getattr(m, "merged", False):
                low = x.to(m.lora_A.dtype) @ m.lora_A.t() @ m.lora_B.t()
                wanted = wanted + (low * m.scaling).to(w.dtype)
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False
        finally:
            m.lora_B.data = m_b
            if isinstance(dropout, nn.Module):
                dropout.training = trains
    if not isinstance(y, torch.Tensor) or y.shape != wanted.shape:
        return False
    # Values that are not finite are for others to refuse.
    return not bool((y - wanted).float().norm() > _ROUNDING * wanted.float().norm())


# Of a norm in bf16: far above its rounding, far below an adapter that is missing or scaled.
_ROUNDING = 0.03


class Loralib:
    """loralib.Linear, and other layers with weight, lora_A [r, K], lora_B [N, r] and scaling."""

    @staticmethod
    def matches(m):
        return (
            hasattr(m, "lora_A") and hasattr(m, "lora_B") and _is_matrix(getattr(m, "weight", None))
        )

    @staticmethod
    def refusal(m):
        if isinstance(m, nn.Embedding):
            return "an embedding"
        if hasattr(m, "enable_lora"):
            return "adapters of parts of the rows (enable_lora)"
        if not (_is_matrix(m.lora_A) and _is_matrix(m.lora_B)):
            return "lora_A and lora_B are not two matrices"
        if not isinstance(getattr(m, "scaling", None), (int, float)):
            return f"scaling is a {type(getattr(m, 'scaling', None)).__name__}, not a number"
        N, K = m.weight.shape[::-1] if getattr(m, "fan_in_fan_out", False) else m.weight.shape
        r = m.lora_A.shape[0]
        if tuple(m.lora_A.shape) != (r, K) or tuple(m.lora_B.shape) != (N, r):
            return f"lora_A {list(m.lora_A.shape)} and lora_B {list(m.lora_B.shape)} do not fit [{N}, {K}]"
        if _probability(getattr(m, "lora_dropout", None)) is None:
            return f"dropout by a {type(m.lora_dropout).__name__}"
        if not _computes_lora(m):
            return "its forward is not x · wᵀ + bias + scaling · x · lora_Aᵀ · lora_Bᵀ"
        return None

    @staticmethod
    def base(m):
        return m

    @staticmethod
    def transposed(m):
        return bool(getattr(m, "fan_in_fan_out", False))

    @staticmethod
    def adapter(m):
        """The adapter now; None where the weight contains it; False: the layer's own forward."""
        if getattr(m, "merged", False):
            return None
        dropout = _probability(getattr(m, "lora_dropout", None))
        if dropout is None:
            return False
        return Adapter(m.lora_A, m.lora_B, None, float(m.scaling), dropout)


class Peft:
    """lora.Linear of PEFT, Linear4bit and Linear8bitLt too."""

    @staticmethod
    def matches(m):
        names = ("base_layer", "lora_A", "lora_B", "scaling")
        own = hasattr(m, "lowrank_base")  # module.LoraLinear
        return (
            not own
            and all(hasattr(m, name) for name in names)
            and isinstance(m.lora_A, nn.ModuleDict)
        )

    @staticmethod
    def refusal(m):
        base = m.base_layer
        weight = getattr(base, "weight", None)
        kind = type(base).__name__
        if not (isinstance(base, nn.Linear) or kind == "Conv1D") or weight is None:
            return f"its base is a {kind}"
        if not m.lora_A and len(getattr(m, "lora_embedding_A", ())):
            return "an embedding"
        for name in m.lora_A:
            if Peft.special(m, name):
                return f'adapter "{name}" is not plain LoRA (DoRA or another variant)'
        return None

    @staticmethod
    def special(m, name):
        use_dora = getattr(m, "use_dora", {})
        dora = use_dora.get(name, False) if isinstance(use_dora, dict) else bool(use_dora)
        return dora or name in getattr(m, "lora_variant", {})

    @staticmethod
    def base(m):
        return m.base_layer

    @staticmethod
    def transposed(m):
        return type(m.base_layer).__name__ == "Conv1D"

    @staticmethod
    def adapter(m):
        if getattr(m, "disable_adapters", False):
            return False if getattr(m, "merged", False) else None
        if getattr(m, "merged", False):
            return None
        active = getattr(m, "active_adapters", None) or getattr(m, "active_adapter", [])
        active = [active] if isinstance(active, str) else active
        active = [name for name in active if name in m.lora_A]
        if not active:
            return None
        name = active[0]
        a, b = m.lora_A[name], m.lora_B[name]
        dropout = (
            _probability(m.lora_dropout[name]) if name in getattr(m, "lora_dropout", {}) else 0.0
        )
        if len(active) > 1 or Peft.special(m, name) or dropout is None:
            return False
        return Adapter(a.weight, b.weight, b.bias, float(m.scaling[name]), dropout)


class Frozen:
    """nn.Linear whose weight is not trained."""

    @staticmethod
    def matches(m):
        return type(m) is nn.Linear and not m.weight.requires_grad

    @staticmethod
    def refusal(m):
        return None

    @staticmethod
    def base(m):
        return m

    @staticmethod
    def transposed(m):
        return False

    @staticmethod
    def adapter(m):
        return None


KINDS = (Peft, Loralib, Frozen)
