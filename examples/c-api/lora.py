"""lora.c in Python, with ctypes and the arrays of the standard library.

    python3 lora.py            (LOWRANK_LIBRARY names liblowrank.so.1 if it is in no folder of the system)
"""
import array
import ctypes as c
import math
import os

lib = c.CDLL(os.environ.get("LOWRANK_LIBRARY", "liblowrank.so.1"))
lib.lowrank_last_error.restype = c.c_char_p


class DLTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p), ("device_type", c.c_int32), ("device_id", c.c_int32), ("ndim", c.c_int32),
        ("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16),
        ("shape", c.POINTER(c.c_int64)), ("strides", c.POINTER(c.c_int64)), ("byte_offset", c.c_uint64),
    ]


def struct(*fields):
    """A struct of the interface: `size`, `device`, `flags` and `stream`, and then its own fields."""
    head = [("size", c.c_size_t), ("device", c.c_uint32), ("flags", c.c_uint32), ("stream", c.c_void_p)]

    class Args(c.Structure):
        _fields_ = head + [field if isinstance(field, tuple) else (field, c.c_void_p) for field in fields]

        def __init__(self, **given):
            super().__init__(size=c.sizeof(type(self)))
            for name, value in given.items():
                if isinstance(value, Matrix):
                    value = c.addressof(value.tensor)
                setattr(self, name, value)

    return Args


dropout = [("dropout", c.c_double), ("seed", c.c_uint64), ("scaling", c.c_float), ("reserved", c.c_uint32)]
Quantize = struct("w", ("format", c.c_char_p), ("blocksize", c.c_int64))
Forward = struct("x", "w", "bias", "lora_a", "lora_b", "lora_bias", "dropout_mask", *dropout, "h", "y")
Backward = struct("dy", "x", "w", "lora_a", "lora_b", "h", "dropout_mask", *dropout,
                  "dx", "d_lora_a", "d_lora_b", "d_bias", "d_lora_bias")


class Matrix:
    """A float32 matrix over an array, which the library reads and writes in place."""

    def __init__(self, rows, cols, value=lambda i: 0.0):
        self.values = array.array("f", (value(i) for i in range(rows * cols)))
        self.shape = (c.c_int64 * 2)(rows, cols)
        self.tensor = DLTensor(self.values.buffer_info()[0], 1, 0, 2, 2, 32, 1, self.shape, None, 0)


def check(code):
    if code != 0:
        raise RuntimeError(lib.lowrank_last_error().decode())


M, N, K, R = 8, 64, 128, 4
x, w = Matrix(M, K, math.sin), Matrix(N, K, lambda i: 0.1 * math.cos(3 * i))
a, b, t = Matrix(R, K, lambda i: 0.1 * math.sin(7 * i)), Matrix(N, R), Matrix(M, N, math.cos)
h, y, dy, d_a, d_b = Matrix(M, R), Matrix(M, N), Matrix(M, N), Matrix(R, K), Matrix(N, R)

weight = c.c_void_p()
check(lib.lowrank_weight_quantize(c.byref(Quantize(w=w, format=b"nf4")), c.byref(weight)))
forward = Forward(x=x, w=weight, lora_a=a, lora_b=b, scaling=2, h=h, y=y)
backward = Backward(dy=dy, x=x, lora_a=a, lora_b=b, h=h, scaling=2, d_lora_a=d_a, d_lora_b=d_b)
for step in range(1, 6):
    check(lib.lowrank_lora_forward(c.byref(forward)))
    loss = 0.0
    for i, (got, wanted) in enumerate(zip(y.values, t.values)):
        dy.values[i] = (got - wanted) / (M * N)
        loss += 0.5 * (got - wanted) ** 2 / (M * N)
    check(lib.lowrank_lora_backward(c.byref(backward)))
    for parameter, gradient in ((a, d_a), (b, d_b)):
        for i, slope in enumerate(gradient.values):
            parameter.values[i] -= 4 * slope
    print(f"step {step} loss {loss:.4f}")
check(lib.lowrank_weight_release(weight))
