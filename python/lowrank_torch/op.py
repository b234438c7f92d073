"""lora_linear, for autograd, and as torch.ops.lowrank.lora_linear for what traces programs."""

import torch
from torch import nn

from .calls import call, double, float32, unsigned
from .errors import LowrankError, refuse
from .weights import by_number, dense_weight


def _whole(tensor, name):
    """The tensor without gaps."""
    try:
        return tensor if tensor.is_contiguous() else tensor.contiguous()
    except (AttributeError, RuntimeError):
        actual = getattr(tensor, "layout", f"a {type(tensor).__name__}")
        return refuse("ERR_TYPE", f"lora_linear: {name}", "a tensor with dense memory", actual)


def _forward(x, weight, bias, a, b, scaling, dropout, seed, mask, lora_bias):
    """(y, h) of x [..., K]; h [M, r] is None without an adapter."""
    N, K = weight.shape
    x = _whole(x, "x")
    if x.dim() == 0 or x.shape[-1] != K:
        refuse("ERR_SHAPE", "lora_linear: x", f"of K = {K} (w's K)", list(x.shape))
    rows = x.shape[:-1]
    y = x.new_empty(rows + (N,))
    bias = 0 if bias is None else _whole(bias, "bias")
    if a is None:
        call("matmul", x, weight.handle, bias, y)
        return y, None
    a, b = _whole(a, "lora_a"), _whole(b, "lora_b")
    h = x.new_empty((rows.numel(), a.shape[0] if a.dim() else 1), dtype=torch.float32)
    call(
        "lora_forward", x, weight.handle, bias, a, b,
        0 if lora_bias is None else _whole(lora_bias, "lora_bias"),
        0 if mask is None else _whole(mask, "mask"),
        double(dropout), unsigned(seed), float32(scaling), h, y,
    )  # fmt: skip
    return y, h


def _backward(dy, x, weight, bias, a, b, scaling, dropout, seed, mask, lora_bias, h, needs):
    """Gradients of x, bias, a, b and lora_bias, each None unless `needs` has it."""
    dy = dy.contiguous()
    dx = dy.new_empty(dy.shape[:-1] + (weight.shape[1],)) if needs[0] else None
    if a is None:
        if needs[0]:
            call("matmul_input_grad", dy, weight.handle, dx)
        d_bias = dy.reshape(-1, weight.shape[0]).sum(0).to(bias.dtype) if needs[1] else None
        return [dx, d_bias, None, None, None]
    made = [
        torch.empty_like(each, memory_format=torch.contiguous_format) if need else None
        for each, need in zip((bias, a, b, lora_bias), needs[1:])
    ]
    d_bias, d_a, d_b, d_lora_bias = (0 if each is None else each for each in made)
    if any(needs):
        call(
            "lora_backward", dy, _whole(x, "x") if needs[2] else 0, weight.handle,
            _whole(a, "lora_a"), _whole(b, "lora_b"), h if needs[3] else 0,
            0 if mask is None else _whole(mask, "mask"),
            double(dropout), unsigned(seed), float32(scaling),
            0 if dx is None else dx, d_a, d_b, d_bias, d_lora_bias,
        )  # fmt: skip
    return [dx, *made]


def _weight_of(w, number, dtype):
    """The Weight of a tensor without gaps, which the caller keeps, or the one with that number."""
    if w is not None:
        return dense_weight(w)
    found = by_number.get(number)
    if found is None:
        refuse(
            "ERR_DISPOSED", "lora_linear: the weight", "alive", f"number {number}, which is gone"
        )
    return found.resolve(dtype)


_SCHEMA = (
    "(Tensor x, Tensor? w, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float scaling, "
    "float dropout=0.0, int seed=0, Tensor? mask=None, Tensor? lora_bias=None, int weight=0, "
    "int rows=0) -> (Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor dy, Tensor x, Tensor? w, Tensor? bias, Tensor? lora_a, Tensor? lora_b, float scaling, "
    "float dropout, int seed, Tensor? mask, Tensor? lora_bias, int weight, Tensor h, bool[] needs) "
    "-> Tensor[]"
)


@torch.library.custom_op("lowrank::lora_linear", mutates_args=(), schema=_SCHEMA)
def _op(x, w, bias, lora_a, lora_b, scaling, dropout=0.0, seed=0, mask=None, lora_bias=None,
        weight=0, rows=0):  # fmt: skip
    w = None if w is None else w.contiguous()
    made = _weight_of(w, weight, x.dtype)
    y, h = _forward(x, made, bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias)
    return y, x.new_empty((0, 0), dtype=torch.float32) if h is None else h


@_op.register_fake
def _(x, w, bias, lora_a, lora_b, scaling, dropout=0.0, seed=0, mask=None, lora_bias=None,
      weight=0, rows=0):  # fmt: skip
    y = x.new_empty((*x.shape[:-1], rows if w is None else w.shape[0]))
    M = 1
    for size in x.shape[:-1]:
        M = M * size
    h = (0, 0) if lora_a is None else (M, lora_a.shape[0])
    return y, x.new_empty(h, dtype=torch.float32)


@torch.library.custom_op("lowrank::lora_linear_backward", mutates_args=(), schema=_BACKWARD_SCHEMA)
def _backward_op(dy, x, w, bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias, weight, h,
                 needs):  # fmt: skip
    w = None if w is None else w.contiguous()
    made = _weight_of(w, weight, x.dtype)
    given = (bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias)
    return [each for each in _backward(dy, x, made, *given, h, needs) if each is not None]


@_backward_op.register_fake
def _(dy, x, w, bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias, weight, h, needs):
    like = (x, bias, lora_a, lora_b, lora_bias)
    return [each.new_empty(each.shape) for each, need in zip(like, needs) if need]


def _no_second(*_):
    raise LowrankError(
        "ERR_UNSUPPORTED", "gradients must be of first order, got a second one (create_graph)"
    )


class _Last(torch.autograd.Function):
    """A gradient that has none."""

    @staticmethod
    def forward(ctx, gradient, _):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        _no_second()


def refuse_second(gradients, dy):
    """The gradients that a backward pass returns, which refuse to be differentiated."""
    if not torch.is_grad_enabled():  # no create_graph
        return gradients
    return [None if each is None else _Last.apply(each, dy) for each in gradients]


def _setup(ctx, inputs, output):
    x, w, bias, a, b, scaling, dropout, seed, mask, lora_bias, weight, _ = inputs
    _refuse_trained(w)
    ctx.save_for_backward(x, w, bias, a, b, mask, lora_bias, output[1])
    ctx.numbers = scaling, dropout, seed, weight
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _op_backward(ctx, dy, _):
    asked = ctx.needs_input_grad  # of the arguments that were given: torch leaves out defaults
    gradients = [None] * len(asked)
    if dy is None:
        return tuple(gradients)
    x, w, bias, a, b, mask, lora_bias, h = ctx.saved_tensors
    scaling, dropout, seed, weight = ctx.numbers
    places = (0, 2, 3, 4, 9)
    needs = [place < len(asked) and asked[place] for place in places]
    made = iter(
        torch.ops.lowrank.lora_linear_backward(
            dy, x, w, bias, a, b, scaling, dropout, seed, mask, lora_bias, weight, h, needs
        )
    )
    for place, need in zip(places, needs):
        if need:
            gradients[place] = next(made)
    return tuple(gradients)


torch.library.register_autograd("lowrank::lora_linear", _op_backward, setup_context=_setup)
torch.library.register_autograd(
    "lowrank::lora_linear_backward", _no_second, setup_context=lambda ctx, inputs, output: None
)


class _Eager(torch.autograd.Function):
    """The op without torch's dispatcher, which costs more than a small product."""

    @staticmethod
    def forward(ctx, x, w, bias, a, b, lora_bias, mask, weight, scaling, dropout, seed):
        y, h = _forward(x, weight, bias, a, b, scaling, dropout, seed, mask, lora_bias)
        ctx.save_for_backward(x if a is not None else None, w, bias, a, b, mask, lora_bias, h)
        ctx.rest = weight, scaling, dropout, seed
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, bias, a, b, mask, lora_bias, h = ctx.saved_tensors
        weight, scaling, dropout, seed = ctx.rest
        need = ctx.needs_input_grad
        needs = (need[0], need[2], need[3], need[4], need[5])
        made = _backward(
            dy, x, weight, bias, a, b, scaling, dropout, seed, mask, lora_bias, h, needs
        )
        dx, d_bias, d_a, d_b, d_lora_bias = refuse_second(made, dy)
        return dx, None, d_bias, d_a, d_b, d_lora_bias, None, None, None, None, None


def _refuse_trained(w):
    if w is not None and w.requires_grad:
        refuse(
            "ERR_UNSUPPORTED", "lora_linear: w", "frozen (requires_grad=False)", "a trained weight"
        )


_PLAIN = (torch.Tensor, nn.Parameter)


def lora_linear(
    x, w, bias, lora_a, lora_b, scaling, dropout=0.0, seed=0, *, mask=None, lora_bias=None
):
    """y = x · wᵀ + bias + scaling · (drop(x) · lora_aᵀ · lora_bᵀ + lora_bias), with its gradients.

    :param x: [..., K]
    :param w: [N, K], frozen: a tensor or a Weight
    :param bias: [N] or None
    :param lora_a: [r, K], and `lora_b` [N, r]; both None: only the base product
    :param dropout: probability; element i of x is dropped by a function of (seed, i), or where
        `mask` [..., K] is 0
    :returns: [..., N] in the dtype of x
    :raises LowrankError: ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ... for operands that do not fit"""
    tensor = isinstance(w, torch.Tensor)
    if not tensor and not hasattr(w, "resolve"):
        refuse("ERR_TYPE", "lora_linear: w", "a tensor or a Weight", f"a {type(w).__name__}")
    if tensor and torch.is_grad_enabled():
        _refuse_trained(w)
    if (lora_a is None) != (lora_b is None):
        refuse(
            "ERR_TYPE", "lora_linear: lora_a and lora_b", "both tensors or both None", "one of them"
        )
    if (
        torch.compiler.is_compiling()
        or x.__class__ not in _PLAIN
        or torch._C._len_torch_dispatch_stack()
    ):
        if tensor:
            return torch.ops.lowrank.lora_linear(
                x, w, bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias
            )[0]
        return torch.ops.lowrank.lora_linear(
            x,
            None,
            bias,
            lora_a,
            lora_b,
            scaling,
            dropout,
            seed,
            mask,
            lora_bias,
            w.number,
            w.shape[0],
        )[0]
    if torch._C._are_functorch_transforms_active():
        refuse(
            "ERR_UNSUPPORTED",
            "lora_linear",
            "called by autograd or torch.compile",
            "a torch.func transform",
        )
    if tensor:
        w = _whole(w, "w")  # the handle only has its address
        weight = dense_weight(w)
    else:
        weight = w.resolve(x.dtype)
    if torch.is_grad_enabled():
        return _Eager.apply(x, w if tensor else None, bias, lora_a, lora_b, lora_bias, mask, weight,
                            scaling, dropout, seed)  # fmt: skip
    return _forward(x, weight, bias, lora_a, lora_b, scaling, dropout, seed, mask, lora_bias)[0]
