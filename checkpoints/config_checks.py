"""Checks that the dataclasses of a model config run at birth. A failed one names the class, the field and its value."""

import math


def require_positive(owner: object, *fields: str) -> None:
    """Each field is an int or float above 0 and finite; None passes, for fields that may be absent."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__}: {field} must be positive, not {value}")


def require_not_negative(owner: object, *fields: str) -> None:
    """Each field is an int or float of at least 0 and finite; None passes."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{type(owner).__name__}: {field} must not be negative, and is {value}")


def require_multiple(owner: object, field: str, of: str) -> None:
    """`field` is a multiple of the field named `of`. Both are positive."""
    value, divisor = getattr(owner, field), getattr(owner, of)
    if value % divisor != 0:
        raise ValueError(f"{type(owner).__name__}: {field} {value} is not a multiple of {of} {divisor}")


def require_one_of(owner: object, field: str, choices: tuple[str, ...]) -> None:
    """`field` is one of `choices`."""
    value = getattr(owner, field)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}: {field} must be one of {', '.join(choices)}, not {value!r}")
