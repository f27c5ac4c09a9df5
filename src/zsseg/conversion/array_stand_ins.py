"""What a pickle gets in place of NumPy: classes that build arrays of numbers and can do nothing else.

NumPy's own types are never handed out: ``numpy.ndarray((1,), "O", bytes)`` reads eight bytes as the address
of an object, and the state of a ``numpy.dtype`` can say the same of a type that began as a number.
"""

import math
import pickle
from typing import Any, Self

import numpy as np

NUMBER_CODES = frozenset(
    (*"?bBhHiIlLqQefd", "b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8")
)
BYTE_ORDERS = frozenset("<>=|")


class RefusedPickleError(pickle.UnpicklingError):
    """A pickle asks for something that is not on the list; nothing was called."""


class _StandIn:
    """Gives a pickle no attribute to write to, neither on an object nor on a class."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError(f"a state for {type(self).__name__}")


class ArrayMarker(_StandIn):
    """Stands for ``numpy.ndarray``, which pickles name but need not call."""

    __slots__ = ()

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Refuse.

        Raises:
            RefusedPickleError: always.
        """
        raise RefusedPickleError("a call of numpy.ndarray")


class NumberType(_StandIn):
    """Stands for ``numpy.dtype``: real numbers and truth values only.

    Attributes:
        dtype: NumPy's.

    Raises:
        RefusedPickleError: if it is anything else.
    """

    __slots__ = ("dtype",)
    dtype: np.dtype[Any]

    def __new__(cls, code: Any, _align: Any = False, _copy: Any = True) -> Self:
        """Of a code such as "f4"; what else NumPy's type takes does not matter for numbers."""
        if type(code) is not str or code.lstrip("<>=|") not in NUMBER_CODES or len(code) > 3:
            raise RefusedPickleError(f"numpy.dtype of {code!r:.100}, which is no type of numbers")
        self = super().__new__(cls)
        self.dtype = np.dtype(code)
        return self

    def __setstate__(self, state: Any) -> None:
        """Take the byte order.

        Args:
            state: of NumPy: version, byte order, subarray, names, fields, size, alignment and flags.

        Raises:
            RefusedPickleError: if it is of something other than a number.
        """
        if type(state) is not tuple or len(state) != 8 or any(each is not None for each in state[2:5]):
            raise RefusedPickleError("numpy.dtype with fields, subarrays or metadata")
        order = state[1]
        if type(order) is not str or order not in BYTE_ORDERS:
            raise RefusedPickleError("numpy.dtype of an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class PickledArray(_StandIn):
    """Stands for ``_reconstruct``, the empty array whose content follows as its state.

    Attributes:
        array: what was read, None before.

    Raises:
        RefusedPickleError: if it is to become anything but an array.
    """

    __slots__ = ("array",)
    array: np.ndarray | None

    def __new__(cls, subtype: Any, _shape: Any, _code: Any) -> Self:
        """Without content; shape and type come with the state."""
        if subtype is not ArrayMarker:
            raise RefusedPickleError("numpy's _reconstruct of something that is no numpy.ndarray")
        return cls.build(None)

    @classmethod
    def build(cls, array: np.ndarray | None) -> Self:
        """Around an array."""
        self = object.__new__(cls)
        self.array = array
        return self

    def __setstate__(self, state: Any) -> None:
        """Take the content.

        Args:
            state: of NumPy: version, shape, type, whether in Fortran's order, and the bytes.

        Raises:
            RefusedPickleError: if these are no numbers.
            ValueError: if the bytes are more or fewer than the shape asks for.
        """
        if type(state) is not tuple or len(state) != 5:
            raise RefusedPickleError("numpy.ndarray with another state than NumPy's")
        _, shape, kind, is_fortran, data = state
        self.array = _build_array(data, kind, shape, "F" if is_fortran else "C")


class PickledScalar(_StandIn):
    """Stands for the function that makes a single number."""

    __slots__ = ()

    def __new__(cls, kind: Any, data: Any) -> Any:
        """An array without axes."""
        return PickledArray.build(_build_array(data, kind, (), "C"))


class PickledBuffer(_StandIn):
    """Stands for ``_frombuffer``, which pickles of protocol 5 call."""

    __slots__ = ()

    def __new__(cls, data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        """An array; with order K, axes in another order than they lie in memory."""
        if order == "K" and axes is not None:
            return PickledArray.build(_build_array(data, kind, shape, "C").transpose(axes))
        return PickledArray.build(_build_array(data, kind, shape, "F" if order == "F" else "C"))


class EncodedText(_StandIn):
    """Stands for ``_codecs.encode``, by which pickles of Python 3 hold bytes in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: Any, encoding: Any) -> Any:
        """Bytes.

        Raises:
            RefusedPickleError: if they are not held in the one way that pickles hold them.
        """
        if type(text) is not str or encoding != "latin1":
            raise RefusedPickleError(f"_codecs.encode to {encoding!s:.100}")
        return text.encode("latin1")


def _build_array(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """Numbers in this machine's byte order, in memory of their own."""
    if type(kind) is not NumberType:
        raise RefusedPickleError("numpy.ndarray of something that is no type of numbers")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise RefusedPickleError(f"numpy.ndarray of a {type(data).__name__} in place of bytes")
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise RefusedPickleError("numpy.ndarray with a shape that is none")
    dtype = kind.dtype
    if len(data) != (expected := math.prod(shape) * dtype.itemsize):
        raise ValueError(f"an array of shape {shape} takes {expected} bytes, got {len(data)}")
    array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return array.reshape(shape, order=order).astype(dtype.newbyteorder("="))
