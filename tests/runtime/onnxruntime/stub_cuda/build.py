"""The stub CUDA of stub_cuda.c as a library that stands in for all CUDA libraries that another library needs.

What is needed is read from that library, so that other versions of it, for other versions of CUDA, are served too.
Needs cc, and readelf and nm, which come with it.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("stub_cuda.c")
NAME = "libstub_cuda.so"
_CUDA_LIBRARY = re.compile(r"lib(cuda|cudart|cublas|cublasLt|cudnn|cufft|curand|cusparse|cusolver|nvrtc)\.so")
_CUDA_SYMBOL = re.compile(r"_*cu([A-Z]|da|blas|dnn|fft|rand|sparse|solver)")


class Symbol(NamedTuple):
    name: str
    version: str
    """That its library gives it; "" for none."""


def build_stub_libraries(provider_library: Path, to: Path) -> None:
    """Fill the folder `to` with all CUDA libraries that `provider_library` needs, for LD_LIBRARY_PATH.

    They are links to one library: the loader takes a file that it has loaded under each name that leads to it.
    """
    to.mkdir(parents=True, exist_ok=True)
    by_hand = to / "stub_cuda.o"
    _compile("-c", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", by_hand)
    symbols = needed_symbols(provider_library)
    generated = to / "generated.c"
    generated.write_text(_does_nothing([each.name for each in symbols if each.name not in _defined_in(by_hand)]))
    versions = to / "versions.map"
    versions.write_text(_version_script(symbols))
    script = [f"-Wl,--version-script={versions}"] if any(each.version for each in symbols) else []
    _compile("-shared", by_hand, generated, *script, f"-Wl,-soname,{NAME}", "-lpthread", "-o", to / NAME)
    for name in needed_libraries(provider_library):
        (to / name).unlink(missing_ok=True)
        (to / name).symlink_to(NAME)


def needed_libraries(library: Path) -> list[str]:
    """The CUDA libraries among those that the loader opens with `library`."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _output_of("readelf", "-W", "-d", library))
    return [name for name in needed if _CUDA_LIBRARY.match(name)]


def needed_symbols(library: Path) -> list[Symbol]:
    """What `library` takes from CUDA libraries."""
    symbols = set()
    for line in _output_of("readelf", "-W", "--dyn-syms", library).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND" and _CUDA_SYMBOL.match(fields[7]):
            name, _, version = fields[7].partition("@")
            symbols.add(Symbol(name, version.lstrip("@")))
    return sorted(symbols)


def _does_nothing(names: list[str]) -> str:
    functions = [f'int {name}(void) {{ stub_cuda_log("{name}"); return 0; }}' for name in names]
    return "\n".join(["void stub_cuda_log(const char* format, ...);", *functions, ""])


def _version_script(symbols: list[Symbol]) -> str:
    """What is named nowhere keeps the version of the library itself, as a symbol without one has."""
    nodes = []
    for version in sorted({each.version for each in symbols} - {""}):
        names = "".join(f"    {each.name};\n" for each in symbols if each.version == version)
        nodes.append(f"{version} {{\n  global:\n{names}}};\n")
    return "".join(nodes)


def _defined_in(compiled: Path) -> set[str]:
    return {line.split()[-1] for line in _output_of("nm", "--defined-only", compiled).splitlines() if line}


def _compile(*arguments: str | Path) -> None:
    _output_of(os.environ.get("CC", "cc"), "-std=gnu11", "-O1", "-fPIC", *arguments)


def _output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
