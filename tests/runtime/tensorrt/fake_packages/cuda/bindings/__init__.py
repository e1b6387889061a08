"""Only the driver."""

__version__ = "13.5.0"
