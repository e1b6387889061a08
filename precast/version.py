"""The version of precast, written here only: the wheel's metadata and the C library read this file."""

__version__ = "0.1.0"
