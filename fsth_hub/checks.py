"""Arguments of a wrong type or out of range, refused in one sentence that names them."""

import math
from numbers import Integral, Real
from typing import Literal

from .models.errors import FsthError


def check_number(
    name: str, value: object, low: float, high: float = math.inf, whole: bool = False, even: bool = False
) -> None:
    """Refuse (`FsthError`) what is no finite number (whole or even, if that is asked) from `low` to `high`."""
    fits = isinstance(value, Integral if whole or even else Real) and not isinstance(value, bool)
    if not (fits and math.isfinite(value) and low <= value <= high) or even and value % 2:
        kind = "an even number" if even else "a whole number" if whole else "a number"
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
        raise FsthError(f"{name} must be {kind} {limits}, not {value!r}.")


def check_flags(**flags: object) -> None:
    """Refuse (`FsthError`) what is neither `True` nor `False`."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise FsthError(f"{name} must be True or False, not {value!r}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse (`FsthError`) what is none of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise FsthError(f"{name} must be {', '.join(others)} or {last}, not {value!r}.")


def read_faces(name: str, text: str) -> int | list[int] | Literal["all"]:
    """The number of a face, several (0,2), or "all", as a text says it; `FsthError` for anything else."""
    if text == "all":
        return text
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise FsthError(f"{name} must be the number of a face, several such as 0,2, or all, and not {text}.")
    return int(text) if len(numbers) == 1 else [int(number) for number in numbers]
