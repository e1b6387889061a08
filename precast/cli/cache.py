"""precast cache: show and empty the build cache, which keeps built engines for the next time."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.cli.output import format_bytes, print_json, print_table

if TYPE_CHECKING:
    from precast.builder.cache.entry import Entry
    from precast.builder.cache.store import BuildCache

_KEY_DIGITS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "size", "prune", "clear"),
        help="list (default): every engine, least recently used first; size: how much there is of how much; "
        "prune: remove what is over the limits; clear: remove every engine that no process uses",
    )
    parser.add_argument("--dir", metavar="DIR", help="default: $PRECAST_CACHE, else ~/.cache/precast/builds")
    parser.add_argument("--max-gb", type=float, metavar="X", help="the limit to prune to, in units of 10^9 bytes")
    parser.add_argument("--max-records", type=int, metavar="N", help="engines to prune to")


def run(args: argparse.Namespace) -> int:
    from precast.build_cache import BuildCacheConfig, open_build_cache

    config = BuildCacheConfig(args.dir, max_records=args.max_records, max_cache_storage_gb=args.max_gb)
    cache = open_build_cache(config)
    if args.action == "list":
        _list(cache, args.json)
    elif args.action == "size":
        _print_size(cache, args.json)
    else:
        _remove(cache, args.action, args.json)
    return 0


def _list(cache: BuildCache, as_json: bool) -> None:
    entries = cache.entries()
    if as_json:
        print_json({**_size(cache, entries), "entries": [_to_json(entry) for entry in entries]})
    elif entries:
        print_table([("key", "bytes", "last used", "engine", "built from"), *map(_row, entries)])
    else:
        print(f"{cache.directory}: no engines")


def _print_size(cache: BuildCache, as_json: bool) -> None:
    size = _size(cache, cache.entries())
    if as_json:
        print_json(size)
    else:
        print(
            f"{cache.directory}: {_engines(size['num_entries'])}, {format_bytes(size['size_bytes'])} "
            f"of {format_bytes(size['max_bytes'])}"
        )


def _remove(cache: BuildCache, action: str, as_json: bool) -> None:
    removed = cache.clear() if action == "clear" else cache.prune()
    left = _size(cache, cache.entries())
    if as_json:
        print_json({**left, "removed": {"num_entries": removed.num_entries, "size_bytes": removed.size_bytes}})
        return
    print(
        f"{cache.directory}: removed {_engines(removed.num_entries)}, {format_bytes(removed.size_bytes)}; "
        f"{_engines(left['num_entries'])}, {format_bytes(left['size_bytes'])} left"
        + (f", {left['num_in_use']} of them in use" if left["num_in_use"] else "")
    )


def _size(cache: BuildCache, entries: list[Entry]) -> dict[str, Any]:
    return {
        "directory": str(cache.directory),
        "num_entries": len(entries),
        "num_in_use": sum(entry.in_use for entry in entries),
        "size_bytes": sum(entry.size_bytes for entry in entries),
        "max_bytes": cache.max_bytes,
    }


def _to_json(entry: Entry) -> dict[str, Any]:
    record = entry.record()
    return {
        "key": entry.key,
        "engine": str(entry.engine_dir),
        "size_bytes": entry.size_bytes,
        "last_use": _last_use(entry),
        "in_use": entry.in_use,
        "source": record.get("source"),
        "description": record.get("description"),
    }


def _row(entry: Entry) -> tuple[object, ...]:
    source = entry.record().get("source") or "?"
    used = "now" if entry.in_use else _last_use(entry) or "?"
    return (entry.key[:_KEY_DIGITS], entry.size_bytes, used, _engine(entry.engine_dir), source)


def _engine(engine_dir: Path) -> str:
    from precast.checkpoints.engine_dir import read_manifest
    from precast.checkpoints.engine_errors import EngineError

    try:
        manifest = read_manifest(engine_dir)
    except EngineError as error:
        return f"damaged: {error}"
    return f"{manifest.model.architecture} {manifest.build.dtype}, KV cache {manifest.build.kv_cache_dtype}"


def _last_use(entry: Entry) -> str | None:
    """In UTC, to the second; None where it is not known."""
    if not entry.last_use_ns:
        return None
    moment = datetime.datetime.fromtimestamp(entry.last_use_ns // 10**9, tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _engines(count: int) -> str:
    return "1 engine" if count == 1 else f"{count} engines"
