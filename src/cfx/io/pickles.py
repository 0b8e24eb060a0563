"""Pickles of arrays, read without trusting them.

The unpickler knows numpy arrays, JAX arrays (rebuilt as numpy) and optax states (kept as inert tuples). A pickle
that names anything else is refused before the thing is imported. It is the unpickler that Python's library has in
Python: each opcode is a method, so that what a few bytes ask for can be weighed against the size of the file.
"""

import os
import pickle
import re
import struct
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np


class Refused(Exception):
    """A pickle asks for something that holds no numbers; the message says for what."""


class Damaged(Exception):
    """Bytes that are not a pickle, or half of one; the message is the kind of error."""


def load(file: IO[bytes]) -> Any:
    """The content of a pickle; `array_of` tells its arrays.

    Raises:
        Refused: without having run anything.
        Damaged: likewise.
    """
    try:
        return RestrictedUnpickler(file).load()
    except _DAMAGE as error:
        raise Damaged(type(error).__name__) from error


def array_of(content: Any) -> np.ndarray | None:
    """The array that a part of an unpickled content is, or None."""
    return content.value if isinstance(content, _Array) else None


class _Dtype:
    """Stands for a numpy dtype of plain numbers; anything else is refused."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_flags: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", code):
            raise pickle.UnpicklingError("an array of something other than numbers")
        self.code = code.lstrip("<>=|")

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags): only the byte order may say anything.
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a damaged dtype")
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a structured array")
        self.code = state[1] + self.code


class _Array:
    """Stands for a numpy array while it is unpickled: numpy itself never sees the pickle's state."""

    __slots__ = ("value",)

    def __init__(self, *_arguments: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("a damaged array")
        _version, shape, dtype, fortran, data = state
        self.value = _make_array(data, dtype, shape, "F" if fortran else "C")


def _make_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    sizes_ok = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes_ok or not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or order not in "CF":
        raise pickle.UnpicklingError("a damaged array")
    return np.frombuffer(data, np.dtype(dtype.code)).reshape(shape, order=order)


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """What numpy's pickles of protocol 5 call."""
    array = _Array()
    array.value = _make_array(data, dtype, shape, order)
    return array


def _rebuild_jax_array(build: Any, _arguments: Any, state: Any, _aval_state: Any) -> _Array:
    """What JAX's pickles call: numpy's builder with the array's state."""
    if not isinstance(build, _Function) or build.make is not _Array:
        raise pickle.UnpicklingError("a JAX array that is not made of a numpy array")
    array = _Array()
    array.__setstate__(state)
    return array


def _bytes_from_text(text: Any, encoding: Any) -> bytes:
    """What pickles of protocol 2 call for bytes, which that protocol lacks."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("damaged bytes")
    return text.encode("latin1")


class _Function:
    """A name the pickle may call; made anew for every file, so that no file can change it for the next."""

    __slots__ = ("make",)

    def __init__(self, make: Any):
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


_ALLOWED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    ("jax._src.array", "_reconstruct_array"): _rebuild_jax_array,
    ("_codecs", "encode"): _bytes_from_text,
}
_OPTAX_STATE = re.compile(r"optax\._src\.\w+")


def _opaque_state() -> type:
    """A fresh class that stands for an optimiser state of a library whose classes are not imported."""
    return type("OpaqueState", (tuple,), {"__slots__": (), "__new__": lambda cls, *fields: tuple.__new__(cls, fields)})


_library: Any = pickle  # the stubs know the unpickler in C only

MOST_OPCODES = 1_000_000
"""Opcodes in a file, at most. The largest published checkpoint has 20,000."""

_FORBIDDEN = (
    *(pickle.PERSID, pickle.BINPERSID, _library.NEXT_BUFFER, _library.READONLY_BUFFER),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DUP),
)
"""Opcodes that no pickle of arrays needs: other ways to call something, and what is hashed."""


class RestrictedUnpickler(_library._Unpickler):
    """Loads arrays and the containers around them; refuses every other name, and more work than the file's size."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        start = file.tell()
        self._left = self._copies_left = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        self._file = file
        self._opaque_state = _opaque_state()

    def load(self) -> Any:
        """Loads the pickle as the library does, with a limit on the number of opcodes."""
        self._unframer = _library._Unframer(self._read, self._readline)
        self.read, self.readline = self._unframer.read, self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        try:
            # Every opcode can leave an object of a hundred bytes behind: a large file of them would fill the memory.
            for _ in range(MOST_OPCODES):
                self.dispatch[self.read(1)[0]](self)
        except _library._Stop as stop:
            return stop.value
        raise pickle.UnpicklingError(f"more than {MOST_OPCODES:,} opcodes")

    def _read(self, size: int) -> bytes:
        if size > self._left:  # before anything of that size is allocated
            raise EOFError
        self._left -= size
        return self._file.read(size)

    def _readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _Function(_ALLOWED[module, name])
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"  # only ever an argument of `_reconstruct`
        if _OPTAX_STATE.fullmatch(module) and name.endswith("State") and name.isidentifier():
            return self._opaque_state
        raise Refused(f"refused a pickle that asks for {module}.{name}; nothing in it was run")

    def _call(self) -> None:
        """REDUCE and NEWOBJ."""
        # What is passed again and again, and copied each time, is counted each time against the size of the file.
        arguments, function = self.stack.pop(), self.stack[-1]
        known = isinstance(function, _Function) or function is self._opaque_state
        if not known or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of something that is not a function")
        self._copies_left -= len(arguments) + sum(len(text) for text in arguments if isinstance(text, str))
        if self._copies_left < 0:
            raise pickle.UnpicklingError("a short file that makes much of little")
        self.stack[-1] = function(*arguments)

    def _build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if not isinstance(instance, _Array | _Dtype):
            raise pickle.UnpicklingError("the state of something that is not an array")
        instance.__setstate__(state)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _fill(self, items: list) -> None:
        """Puts keys and values into the dict on the stack."""
        # A tuple of two references to a tuple of two references and so on has a hash that takes for ever.
        content = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
                raise pickle.UnpicklingError("a key that is neither text nor a number")
            if type(content) is not dict:
                raise pickle.UnpicklingError("items of something that is not a dict")
            content[key] = value

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch: ClassVar[dict[int, Callable]] = {
        code: method for code, method in _library._Unpickler.dispatch.items() if bytes([code]) not in _FORBIDDEN
    }
    dispatch |= {pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _build, pickle.DICT[0]: _dict}
    dispatch |= {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, _library.BYTEARRAY8[0]: _bytearray}


_DAMAGE = (
    *(pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError, NotImplementedError, AssertionError),
)
"""What the unpickler raises on bytes that are not a pickle."""
