"""Frozen base weights: dense ones in torch's memory, and quantised ones of the library."""

import ctypes
import itertools
import weakref

import torch

from .calls import FIELDS, Frame, call
from .errors import refuse
from .library import check, library

_DOUBLE_QUANT, _ROWWISE = 1, 2
_PARTS = FIELDS["weight_from_parts"][5:]
_numbers = itertools.count(1)
by_number = weakref.WeakValueDictionary()  # what an op of torch names by an integer


def register(named):
    number = next(_numbers)
    by_number[number] = named
    return number


class _Info(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("rows", ctypes.c_int64), ("cols", ctypes.c_int64),
        ("bytes", ctypes.c_int64), ("blocksize", ctypes.c_int64), ("format", ctypes.c_char * 16),
        ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
    ]  # fmt: skip


class Weight:
    """A frozen weight [N, K] of the library, dense in torch's memory or quantised. Read-only."""

    def __init__(self, make, rowwise=False, keeps=None):
        handle = ctypes.c_void_p()
        make(ctypes.byref(handle))
        self.handle = handle.value
        self._release = library().lowrank_weight_release
        self._keeps = keeps
        self.rowwise = rowwise
        info = _Info(size=ctypes.sizeof(_Info))
        check(library().lowrank_weight_describe(handle, ctypes.byref(info)))
        self.shape = (info.rows, info.cols)
        self.format = info.format.decode()
        self.blocksize = info.blocksize
        self.bytes = info.bytes
        self.number = register(self)

    def __del__(self):
        if "handle" in self.__dict__:
            self._release(self.handle)

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        parts = {name: part.cpu() for name, part in self.parts().items()}
        if "dense" in parts:
            return Weight.wrap, (parts["dense"],)
        return Weight.from_parts, (self.format, self.shape, parts, self.blocksize, self.rowwise)

    def __repr__(self):
        return f"Weight({self.format}, {list(self.shape)}, {self.bytes} bytes)"

    def resolve(self, _dtype=None):
        return self

    @classmethod
    def wrap(cls, w):
        """A dense weight that is read in torch's memory.

        :raises LowrankError: ERR_SHAPE, ERR_DTYPE or ERR_DEVICE for a tensor that cannot be one"""
        if w.dim() != 2 or not w.is_contiguous():
            strides = w.stride() if w.layout is torch.strided else w.layout
            refuse("ERR_SHAPE", "w", "a contiguous [N, K]", f"{list(w.shape)}, strides {strides}")
        frame = Frame("dequantize", [0, w])
        at = frame.places[1]
        frame.words[at] = w.data_ptr()
        tensor = ctypes.c_void_p(frame.base + 8 * at)
        wrap = library().lowrank_weight_wrap
        return cls(lambda out: check(wrap(tensor, None, None, out)), keeps=w.detach())

    @classmethod
    def quantize(cls, w, format, blocksize=0, double_quant=False, rowwise=False):
        """The weight [N, K] in a format of docs/formats.md, with the bytes of bitsandbytes.

        :param blocksize: elements that share a scale; 0: the format's own
        :param double_quant: the scales in 8 bits too
        :param rowwise: "int8" with a scale for each row (LLM.int8)
        :raises LowrankError: ERR_FORMAT, ERR_SHAPE, ERR_NON_FINITE, ..."""
        w = w.detach().contiguous()
        if w.dim() != 2:
            refuse("ERR_SHAPE", "w", "[N, K]", list(w.shape))
        name = ctypes.create_string_buffer(str(format).encode())
        flags = (_DOUBLE_QUANT if double_quant else 0) | (_ROWWISE if rowwise else 0)
        operands = [w, ctypes.addressof(name), blocksize]
        return cls(lambda out: call("weight_quantize", *operands, flags=flags, result=out), rowwise)

    @classmethod
    def from_parts(cls, format, shape, parts, blocksize=0, rowwise=False, nested_blocksize=0):
        """A weight from codes and scales that exist, which are copied.

        :param shape: (N, K)
        :param parts: tensors by name: codes (uint8), and absmax, or the four of double quantisation
            absmax_8bit, absmax_codebook, nested_absmax, absmax_offset; codebook if it is not the
            format's own
        :raises LowrankError: ERR_FORMAT for parts that do not belong together"""
        unknown = sorted(set(parts) - set(_PARTS))
        if unknown:
            refuse("ERR_FORMAT", "parts", f"of {', '.join(_PARTS)}", ", ".join(unknown))
        given = [parts.get(name) for name in _PARTS]
        given = [
            0 if part is None else part.detach().cpu().contiguous().reshape(-1) for part in given
        ]
        name = ctypes.create_string_buffer(str(format).encode())
        head = [ctypes.addressof(name), *shape, blocksize, nested_blocksize]
        flags = _ROWWISE if rowwise else 0
        return cls(
            lambda out: call("weight_from_parts", *head, *given, flags=flags, result=out), rowwise
        )

    @classmethod
    def from_bitsandbytes(cls, module):
        """The weight of a Linear4bit or Linear8bitLt, by its bytes.

        :raises LowrankError: ERR_TYPE for a module without quantised bytes"""
        weight = module.weight
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        if state is not None:
            parts = {"codes": weight.data.view(torch.uint8), "codebook": state.code.float()}
            nested_blocksize = 0
            if getattr(state, "nested", False):
                nested = state.state2
                nested_blocksize = nested.blocksize
                parts["absmax_8bit"] = state.absmax
                parts["absmax_codebook"] = nested.code.float()
                parts["nested_absmax"] = nested.absmax.float()
                parts["absmax_offset"] = torch.as_tensor(state.offset).float().reshape(1)
            else:
                parts["absmax"] = state.absmax.float()
            return cls.from_parts(
                state.quant_type,
                tuple(state.shape),
                parts,
                state.blocksize,
                False,
                nested_blocksize,
            )
        held = getattr(module, "state", None)
        codes = getattr(weight, "CB", None)
        codes = getattr(held, "CB", None) if codes is None else codes
        scales = getattr(weight, "SCB", None)
        scales = getattr(held, "SCB", None) if scales is None else scales
        if codes is None and weight.dtype == torch.int8:
            codes = weight.data
        if codes is None or scales is None:
            refuse("ERR_TYPE", "the module", "a Linear4bit or Linear8bitLt with quantised bytes",
                    f"{type(module).__name__} with a weight of {weight.dtype}")  # fmt: skip
        N, K = codes.shape
        block = min(K & -K, 4096)
        parts = {
            "codes": (codes.to(torch.int16) + 128).to(torch.uint8),
            "absmax": scales.float().repeat_interleave(K // block),
        }
        return cls.from_parts("int8", (N, K), parts, block, True)

    def parts(self):
        """Copies of the parts by name, as `from_parts` takes them; of a dense weight "dense"."""
        found = {}
        for name in ["dense"] if self.blocksize == 0 else _PARTS:
            managed = ctypes.c_void_p()
            code = library().lowrank_weight_part(
                ctypes.c_void_p(self.handle), name.encode(), ctypes.byref(managed)
            )
            if code == 0:
                found[name] = _from_dlpack(managed).clone()
        return found

    def dequantize(self, dtype=torch.float32, device="cpu"):
        """The values as a tensor [N, K]."""
        if self.blocksize == 0:
            return self._keeps.to(dtype, copy=True)
        y = torch.empty(self.shape, dtype=dtype, device=device)
        call("dequantize", self.handle, y)
        return y


def _from_dlpack(managed):
    """torch before 2.8 reads only the earlier form of DLPack."""
    legacy = ctypes.c_void_p()
    check(library().lowrank_to_dlpack_legacy(managed, ctypes.byref(legacy)))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
    ]
    return torch.utils.dlpack.from_dlpack(new(legacy, b"dltensor", None))


_dense = {}  # handles by what they describe: an address and a shape are never out of date
_MOST_DENSE = 4096


def dense_weight(w):
    key = (w.data_ptr(), w.shape, w.dtype, w.device)
    found = _dense.get(key)
    if found is None:
        if len(_dense) >= _MOST_DENSE:
            _dense.clear()
        found = _dense[key] = Weight.wrap(w)
        found._keeps = None  # each call has w itself
    return found
