"""What the members of engine.json are checked for: ranges, names and paths. All raise ValueError, "field must ..."."""

from precast.checkpoints.engine_errors import quote

MAX_INT32 = (1 << 31) - 1


def check_range(field: str, value: int, minimum: int, maximum: int = MAX_INT32) -> None:
    if value < minimum:
        raise ValueError(f"{field} must be at least {minimum}, got {value}")
    if value > maximum:
        raise ValueError(f"{field} must be at most {maximum}, got {value}")


def check_name(field: str, value: str) -> None:
    if not value or not all("!" <= character <= "~" for character in value):
        raise ValueError(f"{field} must be printable ASCII without spaces, got {quote(value)}")


def is_path_inside(path: str) -> bool:
    """Whether `path` is relative, stays below where it starts, and is written in one way only."""
    if any(character < " " or character in "\x7f\\" for character in path):
        return False
    return all(component not in ("", ".", "..") for component in path.split("/"))
