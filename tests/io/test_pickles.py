"""Pickles of a few bytes that ask for much: refused before the time or the memory is spent."""

import io
import pickle
import struct

import numpy as np
import pytest

from cfx.io import pickles


def binary(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def nested_tuple(depth: int) -> bytes:
    """A tuple of two of the tuple before it, and so on: its hash takes 2^depth steps."""
    return pickle.EMPTY_TUPLE + b"".join(
        pickle.BINPUT + bytes([i]) + pickle.BINGET + bytes([i]) + pickle.TUPLE2 for i in range(depth)
    )


TEXT = pickle.BINUNICODE + struct.pack("<I", 1000) + b"x" * 1000
ENCODE = b"c_codecs\nencode\n" + pickle.BINPUT + b"\0" + TEXT + pickle.BINPUT + b"\1" + binary(0)
HOSTILE = {
    "a key that hashes for ever": (b"}" + nested_tuple(60) + binary(0) + b"s.", "UnpicklingError"),
    "the same key in a group": (b"}(" + nested_tuple(60) + binary(0) + b"u.", "UnpicklingError"),
    "the same key in text": (b"(" + nested_tuple(60) + binary(0) + b"d.", "UnpicklingError"),
    "a set": (b"\x8f(" + nested_tuple(60) + b"\x90.", "KeyError"),
    "a frozen set": (b"(" + nested_tuple(60) + b"\x91.", "KeyError"),
    "keys of one hash": (b"}(" + b"".join(b"L%d\nN" % (i * (2**61 - 1)) for i in range(9)) + b"u.", "UnpicklingError"),
    "items of a function": (b"c_codecs\nencode\n(Vx\nNu.", "UnpicklingError"),
    "a large frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", "EOFError"),
    "large bytes": (b"\x8e" + struct.pack("<Q", 2**40) + b"N.", "EOFError"),
    "a large text": (b"\x8d" + struct.pack("<Q", 2**40) + b"N.", "EOFError"),
    "a large array of bytes": (b"\x96" + struct.pack("<Q", 2**40) + b"N.", "EOFError"),
    "a large number": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"N.", "EOFError"),
    "a number of many digits": (b"L" + b"9" * 5000 + b"L\n.", "ValueError"),
    "text copied again and again": (
        ENCODE + (pickle.BINGET + b"\0" + b"h\1Vlatin1\n\x86R") * 400 + b".", "UnpicklingError"
    ),
    "state of a class": (b"coptax._src.base\nAState\n}b.", "UnpicklingError"),
    "a call of text": (b"Vx\n)R.", "UnpicklingError"),
    "a sequence that is not a tuple": (b"c_codecs\nencode\n]R.", "UnpicklingError"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name):
    content, kind = HOSTILE[name]
    with pytest.raises(pickles.Damaged, match=f"^{kind}$"):
        pickles.load(io.BytesIO(content))


def test_a_memo_of_any_index_is_small():
    """The unpickler in C makes room for every index up to the largest."""
    content = b"".join(b"r" + struct.pack("<I", index) for index in (2**27, 2**28, 2**32 - 1))
    assert pickles.load(io.BytesIO(b"N" + content + b".")) is None


def test_more_opcodes_than_any_model_needs(monkeypatch):
    content = pickle.dumps({str(i): i for i in range(100)})
    assert len(pickles.load(io.BytesIO(content))) == 100
    monkeypatch.setattr(pickles, "MOST_OPCODES", 50)
    with pytest.raises(pickles.Damaged):
        pickles.load(io.BytesIO(content))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_states_shared_between_arrays_load(protocol):
    """Types and texts that a pickle names once and uses everywhere do not count against it."""
    content = {f"layer_{i}": {"w": np.full((3, 4), i, np.float32)} for i in range(300)}
    loaded = pickles.load(io.BytesIO(pickle.dumps(content, protocol)))
    for name, arrays in content.items():
        np.testing.assert_array_equal(pickles.array_of(loaded[name]["w"]), arrays["w"])
