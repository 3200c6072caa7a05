"""NumPy functions as named targets of XLA's foreign function interface, without a compiler (CPU only).

A program that calls such a target names it and does not hold it, so that JAX can keep the program on disk
(`JAX_COMPILATION_CACHE_DIR`); one with a `jax.pure_callback` it cannot.  The structures are those of XLA's C interface of version
0.3 (`xla/ffi/api/c_api.h`, which comes with jaxlib).  XLA asks a target for its version when it is registered, and refuses one
that it cannot serve.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Host = Callable[[np.ndarray], np.ndarray]

VERSION = (0, 3)
METADATA, EXECUTE, INTERNAL = 1, 3, 13  # an extension's type, a stage, an error code
DTYPES: dict[int, np.dtype[Any]] = {11: np.dtype(np.float32), 12: np.dtype(np.float64)}
PLATFORM = "cpu"

_P = ctypes.c_void_p


def _structure(name: str, *fields: tuple[str, type]) -> type[ctypes.Structure]:
    """A structure of the interface; most begin with their size and a list of extensions."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


_HEAD = (("struct_size", ctypes.c_size_t), ("extension", _P))
_List = _structure("List", *_HEAD, ("size", ctypes.c_int64), ("types", _P), ("items", ctypes.POINTER(_P)))
_Attributes = _structure(
    "Attributes", *_HEAD, ("size", ctypes.c_int64), ("types", _P), ("names", _P), ("items", ctypes.POINTER(_P))
)
_Frame = _structure(
    "Frame",
    *_HEAD,
    ("api", _P),
    ("context", _P),
    ("stage", ctypes.c_int),
    ("args", _List),
    ("rets", _List),
    ("attributes", _Attributes),
)
_Buffer = _structure(
    "Buffer",
    *_HEAD,
    ("dtype", ctypes.c_int),
    ("data", _P),
    ("rank", ctypes.c_int64),
    ("dims", ctypes.POINTER(ctypes.c_int64)),
)
_Version = _structure("Version", *_HEAD, ("major", ctypes.c_int), ("minor", ctypes.c_int))
_Metadata = _structure("Metadata", ("struct_size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))
_Extension = _structure(
    "Extension", ("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", _P), ("metadata", _P)
)
_Api = _structure("Api", *_HEAD, ("version", _Version), ("internal", _P), ("error_create", _P))
_Error = _structure("Error", *_HEAD, ("message", ctypes.c_char_p), ("code", ctypes.c_int))
_ErrorCreate = ctypes.CFUNCTYPE(_P, ctypes.POINTER(_Error))
_Handler = ctypes.CFUNCTYPE(_P, _P)


def _array(address: int) -> np.ndarray:
    """A view of a buffer; valid as long as the call lasts."""
    buffer = _Buffer.from_address(address)
    dtype = DTYPES[buffer.dtype]
    shape = tuple(buffer.dims[: buffer.rank])
    count = int(np.prod(shape))
    if not count:
        return np.empty(shape, dtype)
    flat = (ctypes.c_byte * (count * dtype.itemsize)).from_address(buffer.data)
    return np.ndarray(shape, dtype, memoryview(flat))


def _error(frame: ctypes.Structure, message: str) -> int | None:
    """An error that XLA raises as its own."""
    create = _ErrorCreate(_Api.from_address(frame.api).error_create)
    return create(_Error(ctypes.sizeof(_Error), None, message.encode(), INTERNAL))


def _handle(host: Host, address: int) -> int | None:
    """Answers XLA: what version this is, or what `host` makes of the argument; NULL or an error."""
    frame = _Frame.from_address(address)
    extension = _Extension.from_address(frame.extension) if frame.extension else None
    if extension is not None and extension.type == METADATA:
        found = _Metadata.from_address(extension.metadata)
        found.version.major, found.version.minor = VERSION
        return None
    if frame.stage != EXECUTE:
        return None
    try:
        given = _array(frame.args.items[0])
        given.flags.writeable = False
        _array(frame.rets.items[0])[...] = host(given)
    except BaseException as error:  # nothing may leave through C
        return _error(frame, f"{type(error).__name__}: {error}")
    return None


_lock = threading.Lock()
_known: dict[str, object] = {}  # name -> what must live as long as programs may call it


def register(name: str, host: Host) -> bool:
    """Makes `host` the CPU target `name`, unless one of that name is there already; False where this JAX cannot have it.

    Args:
      name: says all that `host` depends on, so that every process means the same by it.
      host: `(lanes, nin) -> (lanes, nout)`, NumPy only, called from XLA's threads; what it raises, XLA raises.
    """
    with _lock:
        if name in _known:
            return True
        handler = _Handler(functools.partial(_handle, host))
        try:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform=PLATFORM)
        except Exception:
            return False
        _known[name] = handler
        return True
