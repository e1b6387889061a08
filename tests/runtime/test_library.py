"""The ctypes declarations agree with precast.h: a C program that includes it prints what the compiler made of it."""

import ctypes
import enum
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from precast.runtime import CapacityPolicy, ErrorCode, FinishReason, LogLevel, conversion, library, structs

HEADER = Path(__file__).resolve().parents[2] / "runtime" / "native" / "include" / "precast.h"

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "precast_engine_options_t": structs.EngineOptionsStruct,
    "precast_logit_bias_t": structs.LogitBiasStruct,
    "precast_token_sequence_t": structs.TokenSequenceStruct,
    "precast_sampling_t": structs.SamplingStruct,
    "precast_retention_t": structs.RetentionStruct,
    "precast_request_t": structs.RequestStruct,
    "precast_logprob_t": structs.LogprobStruct,
    "precast_event_t": structs.EventStruct,
    "precast_logits_row_t": structs.LogitsRowStruct,
    "precast_logits_processor_t": structs.LogitsProcessorStruct,
    "precast_token_source_t": structs.TokenSourceStruct,
    "precast_step_t": structs.StepStruct,
    "precast_step_result_t": structs.StepResultStruct,
    "precast_session_config_t": structs.SessionConfigStruct,
    "precast_session_properties_t": structs.SessionPropertiesStruct,
    "precast_session_table_t": structs.SessionTableStruct,
}

FUNCTION_FIELD = re.compile(r"\(\*(\w+)\)\(([^)]*)\);")


def without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)


def enumerator_values() -> dict[str, int]:
    """PRECAST_... of all enumerations."""
    return {
        name: int(value) for name, value in re.findall(r"\b(PRECAST_\w+) = (\d+)", without_comments(HEADER.read_text()))
    }


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """ "struct" -> sizeof, "struct.field" -> offsetof, as C sees them."""
    folder = tmp_path_factory.mktemp("layout")
    lines = []
    for struct, mirror in STRUCTS.items():
        lines.append(f'  printf("{struct} %zu\\n", sizeof({struct}));')
        lines += [f'  printf("{struct}.{name} %zu\\n", offsetof({struct}, {name}));' for name, *_ in mirror._fields_]
    source = folder / "layout.c"
    source.write_text(
        "#include <precast.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\n  return 0;\n}\n"
    )
    compile_ = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{HEADER.parent}"]
    subprocess.run([*compile_, source, "-o", folder / "layout"], check=True)
    output = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("struct", STRUCTS)
def test_structs_have_the_layout_of_c(struct: str, layout: dict[str, int]) -> None:
    mirror = STRUCTS[struct]
    ours = {f"{struct}.{name}": getattr(mirror, name).offset for name, *_ in mirror._fields_}
    ours[struct] = ctypes.sizeof(mirror)
    assert ours == {name: value for name, value in layout.items() if name.split(".")[0] == struct}


@pytest.mark.parametrize("struct", STRUCTS)
def test_structs_have_all_fields_in_order(struct: str) -> None:
    """A field that Python lacks at the end would still give the same offsets, and hide in the padding."""
    body = re.search(rf"\{{([^}}]*)\}} {struct};", without_comments(HEADER.read_text()))
    assert body is not None
    declared = [function or name for function, name in re.findall(r"\(\*(\w+)\)\([^)]*\);|(\w+);", body.group(1))]
    assert [name for name, *_ in STRUCTS[struct]._fields_] == declared


@pytest.mark.parametrize("struct", STRUCTS)
def test_functions_in_structs_take_as_many_arguments(struct: str) -> None:
    body = re.search(rf"\{{([^}}]*)\}} {struct};", without_comments(HEADER.read_text()))
    assert body is not None
    declared = {name: len(arguments.split(",")) for name, arguments in FUNCTION_FIELD.findall(body.group(1))}
    mirrored = {
        name: len(type_._argtypes_)  # type: ignore[arg-type]
        for name, type_, *_ in STRUCTS[struct]._fields_
        if hasattr(type_, "_argtypes_") and type_ is not structs.LogCallback
    }
    assert mirrored == declared


def test_every_struct_of_the_header_is_declared() -> None:
    with_fields = set(re.findall(r"\} (\w+_t);", without_comments(HEADER.read_text())))
    assert with_fields == set(STRUCTS)


C_TYPES: dict[str, Any] = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "precast_error_code_t": ctypes.c_int32,
    "precast_event_kind_t": ctypes.c_uint32,
    "precast_finish_reason_t": ctypes.c_uint32,
}


def declared_functions() -> dict[str, tuple[str, list[str]]]:
    """Name -> type of the result, types of the arguments, as text without `const`."""
    functions = {}
    for result, name, arguments in re.findall(
        r"PRECAST_API ([^;(]*?)(\w+)\(([^)]*)\);", without_comments(HEADER.read_text())
    ):
        types = [re.sub(r"\w+$", "", argument.strip()).strip() for argument in arguments.split(",")]
        functions[name] = (normal(result), [] if arguments == "void" else list(map(normal, types)))
    return functions


def normal(c_type: str) -> str:
    return re.sub(r"\s+", "", c_type.replace("const", ""))


def matches(c_type: str, declared: object) -> bool:
    """Whether a ctypes type may stand for a type of C."""
    if c_type == "void":
        return declared is None
    if not c_type.endswith("*"):
        return declared is C_TYPES[c_type]
    pointee = c_type[:-1]
    if pointee == "char":
        return declared in (ctypes.c_char_p, ctypes.c_void_p)
    if pointee in STRUCTS:
        return declared is ctypes.POINTER(STRUCTS[pointee])
    if pointee in C_TYPES:
        return declared is ctypes.POINTER(C_TYPES[pointee])
    if pointee.endswith("*") and pointee[:-1] in STRUCTS:
        return declared is ctypes.POINTER(ctypes.POINTER(STRUCTS[pointee[:-1]]))
    if pointee == "char*":  # where a text goes to whoever releases it, or texts that are only read
        return declared in (ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_char_p))
    if pointee.endswith("*"):
        return declared is ctypes.POINTER(ctypes.c_void_p)
    return declared is ctypes.c_void_p  # an opaque handle


def test_every_function_of_the_header_is_declared_and_no_other() -> None:
    functions = declared_functions()
    assert len(functions) > 15
    assert set(library._FUNCTIONS) == set(functions)


@pytest.mark.parametrize("name", library._FUNCTIONS)
def test_functions_take_and_return_what_the_header_says(name: str) -> None:
    result, arguments = declared_functions()[name]
    ours_result, ours_arguments = library._FUNCTIONS[name]
    assert matches(result, ours_result), result
    assert len(ours_arguments) == len(arguments)
    assert [c for c, ours in zip(arguments, ours_arguments, strict=True) if not matches(c, ours)] == []


def test_error_codes_are_those_of_the_header() -> None:
    theirs = {name.removeprefix("PRECAST_ERROR_"): v for name, v in enumerator_values().items() if "_ERROR_" in name}
    assert theirs == {code.name: code.value for code in ErrorCode}


def test_finish_reasons_are_those_of_the_header() -> None:
    theirs = {
        value: FinishReason[name.removeprefix("PRECAST_FINISH_")]
        for name, value in enumerator_values().items()
        if name.startswith("PRECAST_FINISH_") and name != "PRECAST_FINISH_NONE"
    }
    assert theirs == conversion.FINISH_REASONS


@pytest.mark.parametrize(("prefix", "mirror"), [("PRECAST_CAPACITY_", CapacityPolicy), ("PRECAST_LOG_", LogLevel)])
def test_enumerations_are_those_of_the_header(prefix: str, mirror: type[enum.IntEnum]) -> None:
    theirs = {name.removeprefix(prefix): v for name, v in enumerator_values().items() if name.startswith(prefix)}
    assert theirs == {member.name: member.value for member in mirror}


def test_event_kinds_are_those_of_the_header() -> None:
    values = enumerator_values()
    assert (
        values["PRECAST_EVENT_TOKEN"],
        values["PRECAST_EVENT_FINISHED"],
    ) == (structs.EVENT_TOKEN, structs.EVENT_FINISHED)


def test_the_loaded_library_has_the_version_of_the_header() -> None:
    header = HEADER.read_text()
    numbers = [re.search(rf"PRECAST_VERSION_{part} (\d+)", header) for part in ("MAJOR", "MINOR", "PATCH")]
    major, minor, patch = (int(number.group(1)) for number in numbers if number is not None)
    loaded = library.load_library()
    assert loaded.precast_version() == major * 1_000_000 + minor * 1000 + patch
    assert loaded.precast_version_string() == f"{major}.{minor}.{patch}".encode()


def test_a_library_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "old.c"
    source.write_text("unsigned precast_version(void) { return 1; }\n")
    old = tmp_path / "libprecast.so.0"
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", old], check=True)
    monkeypatch.setenv("PRECAST_LIBRARY", str(old))
    with pytest.raises(OSError, match=f"^{old} has no function precast_version_string, so it is older than precast "):
        library.load_library.__wrapped__()


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import precast.runtime

    monkeypatch.delenv("PRECAST_LIBRARY", raising=False)
    monkeypatch.setattr(precast.runtime, "__path__", [str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(FileNotFoundError, match=r"libprecast\.so\.0 is not in .*/a/lib or .*/b/lib: install precast"):
        library.library_path()
    (tmp_path / "b" / "lib").mkdir(parents=True)
    (tmp_path / "b" / "lib" / "libprecast.so.0").touch()
    assert library.library_path() == tmp_path / "b" / "lib" / "libprecast.so.0"


def test_onnxruntime_is_found_without_importing_it() -> None:
    path = library.onnxruntime_path()
    assert path is not None
    assert path.name.startswith("libonnxruntime.so")
    assert path.is_file()
