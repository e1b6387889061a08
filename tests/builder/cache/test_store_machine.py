"""Any sequence of uses, releases, prunings and damages, beside a model of exact LRU."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from precast.builder.cache.entry import CachedEngine
from precast.builder.cache.store import BuildCache
from tests.builder.cache.worlds import builder, description, left_overs, make_engine, must_not_build, size_of

SIZES = {"a": 1_000, "b": 20_000, "c": 20_000, "d": 40_000, "e": 90_000, "f": 300_000}
NAMES = st.sampled_from(sorted(SIZES))


@dataclass
class Model:
    """What the cache must hold: names, least recently used first, and their sizes."""

    max_bytes: int
    max_entries: int | None
    entries: dict[str, int] = field(default_factory=dict)

    def use(self, name: str, size_bytes: int, held: set[str]) -> None:
        self.entries.pop(name, None)
        self.entries[name] = size_bytes
        self.evict({*held, name})

    def evict(self, held: set[str]) -> None:
        for name in [name for name, size in self.entries.items() if size > self.max_bytes and name not in held]:
            del self.entries[name]
        for name in [name for name, size in self.entries.items() if size <= self.max_bytes]:
            if self.fits():
                return
            if name not in held:
                del self.entries[name]

    def fits(self) -> bool:
        sizes = [size for size in self.entries.values() if size <= self.max_bytes]
        return sum(sizes) <= self.max_bytes and (self.max_entries is None or len(sizes) <= self.max_entries)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="precast-cache-"))
        self.held: list[tuple[str, CachedEngine]] = []
        self.now_ns = 0

    @initialize(max_bytes=st.integers(0, 200_000), max_entries=st.none() | st.integers(1, 4))
    def open(self, max_bytes: int, max_entries: int | None) -> None:
        self.model = Model(max_bytes, max_entries)
        self.reopen(max_bytes, max_entries)
        self.cache.content_hashes()  # makes it

    @rule(max_bytes=st.integers(0, 200_000), max_entries=st.none() | st.integers(1, 4))
    def reopen(self, max_bytes: int, max_entries: int | None) -> None:
        """Another process with other limits, which do nothing until it uses the cache."""
        self.cache = BuildCache(
            self.folder / "cache", max_bytes=max_bytes, max_entries=max_entries, now_ns=lambda: self.now_ns
        )
        self.model.max_bytes, self.model.max_entries = max_bytes, max_entries

    @rule(name=NAMES, now_ns=st.integers(0, 1 << 40), hold=st.booleans())
    def use(self, name: str, now_ns: int, hold: bool) -> None:
        self.now_ns = now_ns
        is_hit = name in self.model.entries
        build = must_not_build if is_hit else builder(SIZES[name])
        cached = self.cache.get_or_build(description(name), build, source=name)
        assert cached.is_hit == is_hit
        assert (cached.engine_dir / "rank0/weights.bin").stat().st_size == SIZES[name]
        self.model.use(name, size_of(cached.engine_dir.parent), self.held_names())
        if hold:
            self.held.append((name, cached))
        else:
            cached.release()

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        cached = self.cache.get(description(name))
        assert (cached is not None) == (name in self.model.entries)
        if cached is not None:
            self.model.use(name, self.model.entries[name], self.held_names())
            cached.release()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, cached = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        cached.release()

    @rule()
    def prune(self) -> None:
        before = dict(self.model.entries)
        self.model.evict(self.held_names())
        gone = before.keys() - self.model.entries.keys()
        removed = self.cache.prune()
        assert (removed.num_entries, removed.size_bytes) == (len(gone), sum(before[name] for name in gone))

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.entries = {name: size for name, size in self.model.entries.items() if name in self.held_names()}

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """The next who asks for it removes it, also under those who use it: they hold a folder without a name."""
        name = data.draw(st.sampled_from(sorted(self.model.entries)))
        engine_dir = next(entry.engine_dir for entry in self.cache.entries() if entry.record()["source"] == name)
        (engine_dir / "rank0/model.onnx").unlink()
        assert self.cache.get(description(name)) is None
        del self.model.entries[name]
        self.held = [(held, cached) for held, cached in self.held if held != name]

    @rule(name=NAMES)
    def fail(self, name: str) -> None:
        def build(output_dir: Path) -> None:
            make_engine(output_dir)
            raise KeyError(name)

        if name in self.model.entries:
            return
        try:
            self.cache.get_or_build(description(name), build)
        except KeyError:
            return
        raise AssertionError("the error of the build was lost")

    @invariant()
    def the_cache_is_as_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        entries = self.cache.entries()
        assert [(entry.record()["source"], entry.size_bytes) for entry in entries] == list(self.model.entries.items())
        assert [entry.in_use for entry in entries] == [name in self.held_names() for name in self.model.entries]
        assert left_overs(self.cache.directory) == {}

    def held_names(self) -> set[str]:
        return {name for name, _ in self.held}

    def teardown(self) -> None:
        for _, cached in self.held:
            cached.release()
        shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMachine = Machine.TestCase
