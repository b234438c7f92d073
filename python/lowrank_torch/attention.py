"""Causal attention by the library, in place of torch's, while a module computes its forward."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .calls import call, float32
from .op import refuse_second

_DTYPES = (torch.float32, torch.bfloat16)
_MOST_HEAD_DIM = 256


def _rows(x):
    """[B, H, T, D] as [B · T, H · D], without gaps."""
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B * T, H * D).contiguous()


def _heads(rows, B, H, T, D):
    return rows.view(B, T, H, D).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale):
        (B, H, T, D), kv_heads = q.shape, k.shape[1]
        q, k, v = _rows(q), _rows(k), _rows(v)
        o = torch.empty_like(q)
        lse = torch.empty((H, B * T), dtype=torch.float32)
        numbers = B, H, kv_heads, D, 0, float32(scale)
        call("attention", q, k, v, 0, 0, *numbers, o, lse)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.rest = numbers, T
        return _heads(o, B, H, T, D)

    @staticmethod
    def backward(ctx, d_o):
        q, k, v, o, lse = ctx.saved_tensors
        numbers, T = ctx.rest
        B, H, kv_heads, D = numbers[:4]
        dq, dk, dv = (torch.empty_like(each) for each in (q, k, v))
        call("attention_backward", q, k, v, 0, o, lse, _rows(d_o), *numbers, dq, dk, dv)
        made = (
            _heads(dq, B, H, T, D),
            _heads(dk, B, kv_heads, T, D),
            _heads(dv, B, kv_heads, T, D),
        )
        return (*refuse_second(made, d_o), None)


def _fits(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Is it causal attention of whole sequences on the host, without a mask and dropout?"""
    if (
        not is_causal
        or attn_mask is not None
        or dropout_p != 0
        or query.__class__ is not torch.Tensor
    ):
        return False
    if query.dim() != 4 or query.device.type != "cpu" or query.dtype not in _DTYPES:
        return False
    B, H, T, D = query.shape
    kv_heads = key.shape[1] if key.dim() == 4 else 0
    alike = (B, kv_heads, T, D) == tuple(key.shape) == tuple(value.shape)
    same = key.dtype == value.dtype == query.dtype and key.device == value.device == query.device
    groups = kv_heads == H or (enable_gqa and kv_heads != 0 and H % kv_heads == 0)
    return (
        alike and same and groups and D % 2 == 0 and 0 < D <= _MOST_HEAD_DIM and query.numel() != 0
    )


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return _Attention.apply(query, key, value, scale)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and _fits(*args, **kwargs):
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


def with_attention(forward, *args, **kwargs):
    """Calls a forward whose F.scaled_dot_product_attention is the library's where that can do it.
    Traced programs keep torch's, which their compiler knows."""
    if torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    with _Mode():
        return forward(*args, **kwargs)
