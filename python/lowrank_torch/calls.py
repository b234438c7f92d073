"""Calls of the library on tensors of torch, which it reads and writes in place."""

import contextlib
import ctypes
import functools
import struct
import threading

import torch

from .errors import LowrankError, refuse
from .library import check, library

# DLDataTypeCode and bits. The library refuses most of them, in a message that names the type.
_DTYPES = {
    torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.float16: (2, 16), torch.float64: (2, 64),
    torch.uint8: (1, 8), torch.int8: (0, 8), torch.int16: (0, 16), torch.int32: (0, 32),
    torch.int64: (0, 64), torch.bool: (6, 8), torch.complex64: (5, 64), torch.complex128: (5, 128),
}  # fmt: skip

# The words of each struct, 8 bytes each, behind `size`, `device` with `flags`, and `stream`.
FIELDS = {
    "matmul": "x w bias y",
    "matmul_input_grad": "dy w dx",
    "lora_forward": "x w bias lora_a lora_b lora_bias mask dropout seed scaling h y",
    "lora_backward": "dy x w lora_a lora_b h mask dropout seed scaling "
    "dx d_lora_a d_lora_b d_bias d_lora_bias",
    "attention": "q k v rope sinks sequences heads kv_heads head_dim window scale o lse",
    "attention_backward": "q k v rope o lse d_o sequences heads kv_heads head_dim window scale "
    "dq dk dv",
    "weight_quantize": "w format blocksize",
    "weight_from_parts": "format rows cols blocksize nested_blocksize codes codebook absmax "
    "absmax_8bit absmax_codebook nested_absmax absmax_offset",
    "dequantize": "w y",
}
FIELDS = {op: fields.split() for op, fields in FIELDS.items()}
_WITHOUT_STREAM = {"weight_from_parts"}
_TENSOR_WORDS = 8  # of a DLTensor with two dimensions, its shape behind it

_computes_with = 0  # LOWRANK_DEVICE_OF_OPERANDS


@contextlib.contextmanager
def reference():
    """Plain loops in double compute the calls of this block, for comparisons (host memory only)."""
    global _computes_with
    before, _computes_with = _computes_with, 1
    try:
        yield
    finally:
        _computes_with = before


class Frame:
    """The memory of a call: its struct, and a DLTensor for each of its tensors."""

    def __init__(self, op, operands):
        fields = FIELDS[op]
        head = 2 if op in _WITHOUT_STREAM else 3
        at = head + len(fields)
        tensors = sum(value.__class__ is not int for value in operands)
        self.function = getattr(library(), f"lowrank_{op}")
        self.words = (ctypes.c_int64 * (at + _TENSOR_WORDS * tensors))()
        self.words[0] = 8 * at
        self.base = ctypes.addressof(self.words)
        self.argument = ctypes.c_void_p(self.base)
        self.places = []  # of each operand: the word for its address, or for itself
        for field, value in enumerate(operands, head):
            if value.__class__ is int:
                self.places.append(field)
                continue
            self._describe(at, value)
            self.words[field] = self.base + 8 * at
            self.places.append(at)
            at += _TENSOR_WORDS

    def _describe(self, at, tensor):
        code, bits = _DTYPES.get(tensor.dtype, (255, 0))
        shape = tensor.shape
        if len(shape) > 2:
            shape = (shape[:-1].numel(), shape[-1])
        words = self.words
        words[at + 1] = 1 if tensor.is_cpu else 2 | tensor.get_device() << 32  # kDLCPU, kDLCUDA
        words[at + 2] = len(shape) | (code | bits << 8 | 1 << 16) << 32
        words[at + 3] = self.base + 8 * (at + 6)  # shape; strides and byte_offset are 0
        words[at + 6 : at + 6 + len(shape)] = shape


class _Frames(threading.local):
    def __init__(self):
        self.by_key = {}


_frames = _Frames()
_MOST_FRAMES = 1024


def call(op, *operands, flags=0, result=None):
    """Calls the function of an op. An operand is a tensor without gaps, the word of a number or
    weight, or 0 for "not given". `result` is the pointer of a call that makes a weight.

    :raises LowrankError: what the library refuses"""
    library.follow_threads()
    key, words, place = [op], [], -1
    try:
        for value in operands:
            if value.__class__ is int:
                key.append(None)
                words.append(value)
            elif value.is_contiguous():
                if not value.is_cpu and not value.is_cuda:
                    refuse(
                        "ERR_DEVICE", f"{op}: operands", "on the CPU or a CUDA device", value.device
                    )
                place = value.get_device()
                key += (value.shape, value.dtype, place)
                words.append(value.data_ptr())
            else:
                refuse("ERR_SHAPE", f"{op}: operands", "without gaps", f"strides {value.stride()}")
    except (AttributeError, RuntimeError) as error:
        if isinstance(error, LowrankError):
            raise
        raise LowrankError(
            "ERR_TYPE", f"{op}: operands must be tensors with memory: {error}"
        ) from None
    key = tuple(key)
    frames = _frames.by_key
    frame = frames.get(key)
    if frame is None:
        if len(frames) >= _MOST_FRAMES:
            frames.clear()
        frame = frames[key] = Frame(op, operands)
    target = frame.words
    for at, word in zip(frame.places, words):
        target[at] = word
    # The library refuses operands of different devices, so that any one of them tells.
    on_gpu = place >= 0
    target[1] = flags << 32 | (0 if on_gpu else _computes_with)
    if result is None:
        # 1 is the driver's name of the default stream, 0 means "return when it is done".
        target[2] = (torch.cuda.current_stream(place).cuda_stream or 1) if on_gpu else 0
        code = frame.function(frame.argument)
    else:
        if on_gpu:
            torch.cuda.current_stream(place).synchronize()
        code = frame.function(frame.argument, result)
    if code != 0:
        check(code)


@functools.lru_cache(maxsize=1024)
def double(value):
    """The word of a double."""
    return struct.unpack("q", struct.pack("d", value))[0]


@functools.lru_cache(maxsize=1024)
def float32(value):
    """The word of a float with a field of 0 behind it."""
    return struct.unpack("q", struct.pack("fI", value, 0))[0]


def unsigned(seed):
    """The word of a number of 64 bits without sign; a negative one counts from 2^64 down."""
    if not -(1 << 63) <= seed < 1 << 64:
        refuse("ERR_VALUE", "seed", "an integer of 64 bits", seed)
    return seed - (1 << 64) if seed >= 1 << 63 else seed
