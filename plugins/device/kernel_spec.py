"""What to compile: a Triton kernel with its constants and the types of what remains."""

from dataclasses import dataclass

Constant = int | float | bool | None
PARAMETER_BYTES = {"pointer": 8, "int32": 4, "int64": 8, "float": 4}
"""The C types of kernel parameters, and their size."""
_C_TYPES = {"i32": "int32", "i64": "int64", "fp32": "float"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a compiled kernel, in Triton's terms: "i32", "i64", "fp32", or "*" and the type pointed to."""

    name: str
    triton_type: str

    def __post_init__(self) -> None:
        if not self.triton_type.startswith("*") and self.triton_type not in _C_TYPES:
            raise ValueError(
                f"kernel parameter {self.name!r} has type {self.triton_type!r}; "
                f"known are pointers, {', '.join(_C_TYPES)}"
            )

    @property
    def c_type(self) -> str:
        """One of PARAMETER_BYTES."""
        return "pointer" if self.triton_type.startswith("*") else _C_TYPES[self.triton_type]


@dataclass(frozen=True)
class KernelSpec:
    """One kernel, specialised. `function` in `module` is a @triton.jit function and the kernel's name.

    `parameters`, in the function's order, and `constants` together are all of its arguments. Every pointer is compiled
    as a multiple of 16 bytes: whoever launches must pass such. A parameter that does not exist for these attributes is
    the constant None.
    """

    module: str
    function: str
    parameters: tuple[Parameter, ...]
    constants: tuple[tuple[str, Constant], ...]
    num_warps: int
    num_stages: int = 3
    fuse_multiply_add: bool = True
    """Whether the compiler may fuse a * b + c, which rounds once instead of twice."""
