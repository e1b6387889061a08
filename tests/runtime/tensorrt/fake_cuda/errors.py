"""How a call of the fakes ends otherwise than well."""

from tests.runtime.tensorrt.fake_cuda.types import CUresult


class Misuse(Exception):  # noqa: N818 - it is no error of the fake's
    """The caller has a defect; the message says which. It is written down, and the call fails."""


class Unfinished(Exception):  # noqa: N818 - nothing is wrong
    """Work waits for another device. It stays where it is, and begins again when somebody looks at it the next time."""


class StatusError(Exception):
    """The call fails as it may on a real device."""

    def __init__(self, status: CUresult) -> None:
        super().__init__(status.name)
        self.status = status
