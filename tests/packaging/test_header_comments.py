"""precast.h says of everything it declares what it is, and of every pointer whose it is."""

import re
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "runtime" / "native" / "include" / "precast.h"

# What says who has to release memory, or for how long it may be looked at.
OWNERSHIP = re.compile(
    r"\bown(s|ed|er)?\b|\bvalid\b|\bread during\b|\bcopied\b|\bnever freed\b|\btakes?\b|\bReleases\b"
    r"|\bcaller's array\b|\bpassed back\b",
    re.IGNORECASE,
)
FUNCTION = re.compile(r"PRECAST_API\s+([^;{]+?)\b(precast_\w+)\s*\(([^;]*)\);", re.DOTALL)
STRUCT = re.compile(r"typedef struct (precast_\w+) \{(.*?)\n\} \w+;", re.DOTALL)
# Given back by a function of its own, and described where that one stands.
RELEASING = re.compile(r"_(delete|clear|init)$")


def comment_before(text: str, position: int) -> str:
    """The comment that ends where the declaration at `position` begins; "" if there is none."""
    before = text[:position].rstrip()
    return before[before.rindex("/*") :] if before.endswith("*/") else ""


def fields(body: str) -> list[tuple[str, str]]:
    """The declarations of a struct, each with the comment before it or, on its last line, behind it."""
    found: list[tuple[str, str]] = []
    before = ""
    for match in re.finditer(r"/\*.*?\*/|[^;/]+;", body, re.DOTALL):
        token = match.group().strip()
        is_behind = bool(found) and "\n" not in body[: match.start()].rpartition(";")[2]
        if not token.startswith("/*"):
            found.append((token, before))
            before = ""
        elif is_behind:
            found[-1] = (found[-1][0], found[-1][1] + token)
        else:
            before = token
    return found


def problems(text: str) -> list[str]:
    """What is missing in a header, a sentence each."""
    found = []
    for match in FUNCTION.finditer(text):
        result, name, parameters = match.groups()
        comment = comment_before(text, match.start())
        if not comment and not RELEASING.search(name):
            found.append(f"{name} has no comment")
        gives_memory = "**" in parameters.replace("*const *", "") or ("*" in result and "error" not in result)
        if gives_memory and not OWNERSHIP.search(comment):
            found.append(f"{name} gives out memory and does not say whose it is")
    for match in STRUCT.finditer(text):
        about_struct = comment_before(text, match.start())
        for declaration, comment in fields(match.group(2)):
            if not comment and not about_struct:
                found.append(f"{match.group(1)}: {declaration} has no comment")
            elif "*" in declaration and not OWNERSHIP.search(comment + about_struct):
                found.append(f"{match.group(1)}: {declaration} does not say whose the memory is")
    return found


def test_everything_is_described_and_every_pointer_has_an_owner() -> None:
    text = HEADER.read_text()
    assert len(FUNCTION.findall(text)) > 20
    assert len(STRUCT.findall(text)) > 8
    assert problems(text) == []


def test_what_the_check_notices() -> None:
    assert problems("\nPRECAST_API int32_t precast_secret(int32_t x);") == ["precast_secret has no comment"]
    assert problems("/* Says it. */\nPRECAST_API precast_error_t *precast_text(char **json);") == [
        "precast_text gives out memory and does not say whose it is"
    ]
    assert problems("/* Says it. The caller owns it. */\nPRECAST_API precast_error_t *precast_text(char **json);") == []
    assert problems("typedef struct precast_a {\n  const char *path;\n} precast_a_t;") == [
        "precast_a: const char *path; has no comment"
    ]
    assert problems(
        "/* An a. */\ntypedef struct precast_a {\n  /* A path. */\n  const char *path;\n} precast_a_t;"
    ) == ["precast_a: const char *path; does not say whose the memory is"]
