"""Random draws that are equal on every machine: raw generator words and arithmetic that IEEE 754 fixes."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")


class RandomStream:
    """Draws from PCG64, whose raw words NumPy guarantees; its distributions may change between versions.

    Args:
        key: integers, 0 or more; equal keys give equal draws.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((int(self._generator.random_raw()) >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + (int(self._generator.random_raw()) * (high - low + 1) >> 64)

    def choice(self, values: Sequence[Value]) -> Value:
        """One of the values."""
        return values[self.integer(0, len(values) - 1)]

    def sample(self, values: Sequence[Value], count: int) -> list[Value]:
        """``count`` different positions' values, in random order."""
        pool = list(values)
        return [pool.pop(self.integer(0, len(pool) - 1)) for _ in range(count)]

    def direction(self) -> tuple[float, float]:
        """A unit vector, evenly distributed; drawn without sine and cosine, whose last bit differs."""
        while True:
            x, y = self.uniform(-1.0, 1.0), self.uniform(-1.0, 1.0)
            squared = x * x + y * y
            if 0.01 < squared <= 1.0:
                length = math.sqrt(squared)  # ** 0.5 is pow, whose last bit differs
                return x / length, y / length

    def table(self, length: int) -> NDArray[np.float32]:
        """(length,) numbers in [0, 1)."""
        words = self._generator.random_raw(length) >> np.uint64(40)
        return words.astype(np.float32) * np.float32(2.0**-24)

    def bell_noise(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Noise of mean 0 and standard deviation 1: sums of four bytes, close to normal."""
        count = int(np.prod(shape))
        words = self._generator.random_raw((count + 1) // 2).astype("<u8", copy=False)
        # Pairs of bytes are added within each four, then the two sums.
        fours = words.view("<u4")[:count]
        pairs = (fours & 0x00FF00FF) + ((fours >> 8) & 0x00FF00FF)
        sums = ((pairs & 0xFFFF) + (pairs >> 16)).astype(np.int32)
        # The variance of a uniform byte is (256² − 1) / 12.
        return ((sums - 510) * np.float32(1.0 / (65535.0 / 3.0) ** 0.5)).reshape(shape).astype(np.float32)
