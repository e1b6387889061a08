"""Mirror the import package in `tools/typing/precast`, for type checkers and for running without an
install.

The rooms are top-level folders, but their import names are `precast.builder`, `precast.runtime` and so
on: the build backend maps them. Type checkers do not read that map, so `tools/typing/precast` shows them
the same tree:

    tools/typing/precast/<entry>  ->  precast/<entry>     each module, package and data file of it
    tools/typing/precast/<room>   ->  <room>              every room

Run it after adding a file directly under `precast/`; a file inside a room or a sub-package needs
nothing. `--check` changes nothing and lists what is missing or stale; the tests run that.
"""

import argparse
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MIRROR = REPOSITORY / "tools" / "typing" / "precast"
ROOMS = ("builder", "checkpoints", "plugins", "runtime")


def wanted_links() -> dict[str, str]:
    """Name of each link in the mirror -> its relative target."""
    front_door = REPOSITORY / "precast"
    targets = {name: front_door / name for name in _visible(front_door) if name != "README.md"}
    targets |= {room: REPOSITORY / room for room in ROOMS}
    return {name: os.path.relpath(target, MIRROR) for name, target in sorted(targets.items())}


def present_links() -> dict[str, str]:
    """Name of each entry in the mirror -> its target, or "" where it is not a link."""
    if not MIRROR.is_dir():
        return {}
    paths = [MIRROR / name for name in _visible(MIRROR)]
    return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in paths}


def _visible(folder: Path) -> list[str]:
    """Names in `folder`, without caches and hidden files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def update() -> None:
    """Make the mirror complete, and remove links to files that have gone."""
    MIRROR.mkdir(parents=True, exist_ok=True)
    wanted, present = wanted_links(), present_links()
    for name in present.keys() - wanted.keys():
        (MIRROR / name).unlink()
    for name, target in wanted.items():
        if present.get(name) != target:
            (MIRROR / name).unlink(missing_ok=True)
            (MIRROR / name).symlink_to(target)


def main() -> int:
    """Update or check the links. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only list wrong links; exit status 1 if any")
    if not parser.parse_args().check:
        update()
        return 0
    wanted, present = wanted_links(), present_links()
    wrong = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    for name in wrong:
        print(f"tools/typing/precast/{name}: expected link {wanted.get(name)}, found {present.get(name)}")
    if wrong:
        print("run: python tools/typing/link.py")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
