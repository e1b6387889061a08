"""What TensorRT says, kept for whoever has to say why something failed."""

from collections.abc import Callable
from typing import Any


def make_logger(trt: Any, errors: list[str], warn: Callable[[str], None] | None = None) -> Any:
    """A logger of TensorRT's, which must live as long as what is given it.

    Args:
        trt: The module.
        errors: Gets the text of each error.
        warn: Told each warning; None: nobody is.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is only known now
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message.strip())
            elif severity == trt.ILogger.WARNING and warn is not None:
                warn(message.strip())

    return Logger()
