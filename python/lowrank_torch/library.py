"""Finds liblowrank.so.1, opens it, and tells it how many threads torch has."""

import ctypes
import json
import os
import shutil
import subprocess
import threading
import warnings

import torch

from .errors import LowrankError, refuse

_ABI = 1
_NAME = "liblowrank.so.1"
_MOST_THREADS = 256


def _packages():
    """Folders of the npm package: the one that this file is in, and those of node_modules upwards."""
    yield os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    folder = os.getcwd()
    while True:
        yield os.path.join(folder, "node_modules", "lowrank")
        parent = os.path.dirname(folder)
        if parent == folder:
            return
        folder = parent


def _candidates():
    named = os.environ.get("LOWRANK_LIBRARY")
    if named:
        yield named
        return
    for package in _packages():
        for room in ("build/Release", "lib"):
            file = os.path.join(package, room, _NAME)
            if os.path.exists(file):
                yield file
    yield _NAME
    command = shutil.which("lowrank")
    if command is not None:  # a package that is installed for all users knows its own folder
        answer = subprocess.run([command, "info", "--json"], capture_output=True, text=True)
        try:
            yield json.loads(answer.stdout)["cLibrary"]
        except (ValueError, LookupError, TypeError):
            return


def _open():
    tried = []
    for file in filter(None, _candidates()):
        try:
            found = ctypes.CDLL(file)
        except OSError as error:
            tried.append(str(error))
            continue
        for name in ("lowrank_last_error", "lowrank_code_name", "lowrank_version"):
            getattr(found, name).restype = ctypes.c_char_p
        found.lowrank_weight_release.argtypes = [ctypes.c_void_p]
        if found.lowrank_abi() < _ABI:
            refuse("ERR_ABI", f'"{file}"', f"of ABI {_ABI} or later", f"ABI {found.lowrank_abi()}")
        return found
    raise LowrankError(
        "ERR_DEVICE",
        f"{_NAME} is not found: build it with `npx lowrank build --c-api`, or name it in "
        f"LOWRANK_LIBRARY ({'; '.join(tried)})",
    )


class _Library:
    """Opened by the first call, so that an import needs torch alone."""

    def __init__(self):
        self._lock = threading.Lock()
        self._opened = None
        self._threads = 0
        self._warned = False

    def __call__(self):
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = _open()
        return self._opened

    def follow_threads(self):
        """torch.set_num_threads() counts for the kernels too."""
        threads = torch.get_num_threads()
        if threads != self._threads:
            check(self().lowrank_set_threads(min(threads, _MOST_THREADS)))
            self._threads = threads
            self._warn_of_spinning(threads)

    def _warn_of_spinning(self, threads):
        if hasattr(os, "sched_getaffinity"):
            usable = len(os.sched_getaffinity(0))
        else:
            usable = os.cpu_count() or 1
        passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        if self._warned or passive or threads < 2 or 2 * threads - 1 <= usable:
            return
        self._warned = True
        warnings.warn(
            "lowrank: set OMP_WAIT_POLICY=passive before Python starts, because torch's idle "
            f"threads spin on the {usable} cores that the kernels of lowrank need",
            RuntimeWarning,
            stacklevel=2,
        )


library = _Library()


def check(code):
    """Raises what the last call of this thread refused."""
    if code != 0:
        name, message = library().lowrank_code_name(code), library().lowrank_last_error()
        raise LowrankError(name.decode(), message.decode())


def memory(device="cpu"):
    """Bytes and handles of the library on a device, by name: live_bytes, peak_bytes, live_blocks,
    live_weights (of all devices).

    :raises LowrankError: ERR_DEVICE for a device that the library does not have"""
    values = (ctypes.c_int64 * 5)(40)
    check(library().lowrank_memory(device.encode(), values))
    return dict(zip(("live_bytes", "peak_bytes", "live_blocks", "live_weights"), values[1:]))
