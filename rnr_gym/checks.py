"""Checks of what users pass in, with one wording for all arguments.

They raise `ValueError`: the argument in backticks, the rule, the value. What they return is of
Python's own types, or NumPy's arrays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIGHEST_SEED = 2**32 - 1
"""NumPy's legacy generators, which Stable-Baselines3 seeds, take no more."""


def flag(name: str, value: Any) -> bool:
    """A boolean; nothing else is true or false."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")
    return bool(value)


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number of at least `low`, and of at most `high` if that is given."""
    rule = f"a whole number of at least {low}"
    if high is not None:
        rule = f"a whole number in {low}..{high}"
    # `True` is an integer to Python.
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        raise ValueError(f"`{name}` must be {rule}, got {value!r}")
    return int(value)


def integers(name: str, value: Any, low: int) -> list[int]:
    """A sequence of whole numbers of at least `low`."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"`{name}` must be a sequence of whole numbers, got {value!r}")
    return [integer(name, entry, low) for entry in value]


def seed(value: Any) -> int:
    """A seed."""
    return integer("seed", value, 0, HIGHEST_SEED)


def is_number(value: Any) -> bool:
    """Whether it is a real number that a float can hold; neither a boolean nor NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def number(name: str, value: Any, low: float) -> float:
    """A finite number of at least `low`."""
    if not is_number(value) or math.isinf(value) or value < low:
        raise ValueError(f"`{name}` must be a finite number of at least {low:g}, got {value!r}")
    return float(value)


def whole_numbers(
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    low: int | None = None,
    high: int | None = None,
) -> NDArray[np.int64]:
    """Integers of a shape in which None stands for any length, in `low`..`high` if given; int64."""
    try:
        array = np.asarray(value)
    # Lists of different lengths.
    except ValueError:
        raise ValueError(f"`{name}` must be whole numbers, got {shortened(value)}") from None
    # An empty list has no dtype of its own.
    is_whole = np.issubdtype(array.dtype, np.integer) or array.size == 0
    if not is_whole or not _fits(array, shape):
        raise ValueError(
            f"`{name}` must be whole numbers of shape {_shown(shape)}, got {array.dtype} "
            f"{array.shape}"
        )
    if low is not None and high is not None:
        outside = array[(array < low) | (array > high)]
        if outside.size:
            raise ValueError(f"`{name}` must lie in {low}..{high}, got {outside[0]}")
    return array.astype(np.int64, copy=False)


def numbers(
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    low: float = -math.inf,
    high: float = math.inf,
) -> NDArray[np.float64]:
    """Finite numbers of a shape, as above, in `low`..`high`; float64."""
    try:
        array = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"`{name}` must be numbers, got {shortened(value)}") from None
    if not _fits(array, shape):
        raise ValueError(f"`{name}` must have shape {_shown(shape)}, got {array.shape}")
    outside = array[~(np.isfinite(array) & (array >= low) & (array <= high))]
    if outside.size:
        raise ValueError(f"`{name}` must be finite numbers in {low:g}..{high:g}, got {outside[0]}")
    return array


def _fits(array: NDArray[Any], shape: tuple[int | None, ...]) -> bool:
    if array.ndim != len(shape):
        return False
    pairs = zip(shape, array.shape, strict=True)
    return all(length in (None, actual) for length, actual in pairs)


def _shown(shape: tuple[int | None, ...]) -> str:
    return str(shape).replace("None", "any")


def ascending(name: str, value: Any, low: float) -> NDArray[np.float64]:
    """Finite numbers `(n,)`, each above the one before it, the first above `low`."""
    array = numbers(name, value, (None,))
    if not (np.diff(array, prepend=low) > 0).all():
        raise ValueError(f"`{name}` must ascend from above {low:g}, got {shortened(value)}")
    return array


def shortened(value: Any) -> str:
    """What an error shows, on one line, of a value that may be long."""
    text = " ".join(repr(value).split())
    if len(text) > 100:
        return f"{text[:100]}..."
    return text


def choice(name: str, value: Any, options: Collection[str]) -> str:
    """One of some strings."""
    # Arrays compare with each option, so they are turned away first.
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"`{name}` must be one of {', '.join(options)}, got {value!r}")
    return value


def path(name: str, value: Any) -> str:
    """A path, as a string or a `pathlib.Path`."""
    if not isinstance(value, str | PathLike):
        raise ValueError(f"`{name}` must be a path, got {value!r}")
    return str(value)


def device(value: Any) -> str:
    """A device that holds values and that torch can use here."""
    # Torch takes seconds to import.
    import torch

    if not isinstance(value, str | torch.device):
        raise ValueError(f"`device` must be a name such as cpu or cuda, got {value!r}")
    try:
        # Copied back, which "meta" cannot do.
        torch.zeros(1, device=value).cpu()
    # A device that torch was built without is an AssertionError.
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`device` must be one that torch can use here, got {str(value)!r} ({reason})"
        ) from error
    return str(value)
