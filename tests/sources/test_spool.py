"""What is fetched ahead: the right bytes, no more on the disk than allowed, nothing held up, nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hubserver.wire import wait_until

from lora_lab.domain.dtypes import DType
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import CancelledError, HubError, OperationError
from lora_lab.sources.kept import Kept
from lora_lab.sources.ranges import RemoteFile
from lora_lab.sources.spool import Spool
from lora_lab.storage.holding import Held

DATA = os.urandom(1 << 20)
FILE = RemoteFile("org/name", "0" * 40, "model.safetensors", len(DATA), "e" * 64)
SIZE = 1000


class Store:
    """Answers like a reader of ranges, from memory; counts, waits and fails as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.errors: dict[int, BaseException] = {}  # by the range's first byte; each once
        self.is_interrupted = False
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def read(
        self, file: RemoteFile, begin: int, end: int, take: Callable[[int, bytes], object], stop: threading.Event
    ) -> None:
        with self._lock:
            self.asked.append((begin, end))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            while not self.gate.wait(0.01):
                if stop.is_set():
                    raise CancelledError("Cancelled.")
            if begin in self.errors:
                raise self.errors.pop(begin)
            middle = (begin + end) // 2
            take(begin, DATA[begin:middle])
            take(middle, DATA[middle:end])
        finally:
            with self._lock:
                self._at_once -= 1

    def interrupt(self) -> None:
        self.is_interrupted = True


class Watching(Unwatched):
    """Says stop when told to."""

    is_stopping = False

    def is_cancelled(self) -> bool:
        return self.is_stopping


def ref_at(place: int, size: int = SIZE) -> TensorRef:
    """Tensors with large gaps between them, so that each is a range of its own."""
    begin = place * 4 * SIZE
    return TensorRef(FILE.stamp, f"t{place}", DType.U8, (size,), begin, begin + size)


def spool_of(store: Store, ahead: list[TensorRef], **how: object) -> Spool:
    observer = how.pop("observer", Unwatched())
    return Spool({FILE.place: (FILE, store)}, ahead, observer, **how)  # type: ignore[arg-type, dict-item]


def content(held: Held) -> bytes:
    return os.pread(held.descriptor, held.ref.size_bytes, held.ref.begin_bytes)


def truth(ref: TensorRef) -> bytes:
    return DATA[ref.begin_bytes : ref.end_bytes]


def test_tensors_are_there_when_they_are_held(tmp_path: Path) -> None:
    """In another order than told, several at once, some twice: the bytes are right and were asked for once."""
    refs = [ref_at(place) for place in range(40)]
    store = Store()
    store.gate.clear()
    with spool_of(store, refs, folder=tmp_path / "made") as spool, ThreadPoolExecutor(8) as pool:
        assert wait_until(lambda: store.most_at_once == 6)
        store.gate.set()

        def read(ref: TensorRef) -> bool:
            with spool.hold(ref) as held:
                return content(held) == truth(ref)

        assert all(pool.map(read, [*reversed(refs), *refs[:5]]))
    assert sorted(store.asked) == sorted((ref.begin_bytes, ref.end_bytes) for ref in refs)
    assert store.most_at_once == 6
    assert list((tmp_path / "made").iterdir()) == []


def test_neighbours_come_together_and_nobody_told_of_comes_alone() -> None:
    """Two tensors side by side are one range; a third, held without a word before, is one of its own."""
    first = TensorRef(FILE.stamp, "a", DType.U8, (100,), 0, 100)
    second = TensorRef(FILE.stamp, "b", DType.U8, (100,), 100, 200)
    other, empty = ref_at(5), TensorRef(FILE.stamp, "c", DType.U8, (0,), 200, 200)
    store = Store()
    with spool_of(store, [first, second, empty]) as spool:
        for ref in (second, other, first):
            with spool.hold(ref) as held:
                assert content(held) == truth(ref)
        with spool.hold(empty) as held:
            assert held.ref.size_bytes == 0
    assert sorted(store.asked) == [(0, 200), (other.begin_bytes, other.end_bytes)]


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    """With room for five tensors never more than five lie there, and each is fetched once."""
    refs = [ref_at(place) for place in range(50)]
    store = Store()
    with spool_of(store, refs, limit_bytes=5 * SIZE, folder=tmp_path) as spool:
        for ref in refs:
            with spool.hold(ref) as held:
                assert content(held) == truth(ref)
    assert spool.peak_bytes <= 5 * SIZE
    assert len(store.asked) == 50


def test_whoever_waits_is_served_though_the_disk_is_full_of_what_nobody_reads() -> None:
    """What was fetched for later makes room for what is wanted now, and is fetched again later."""
    refs = [ref_at(place) for place in range(10)]
    store = Store()
    with spool_of(store, refs, limit_bytes=3 * SIZE) as spool:
        for ref in reversed(refs):
            with spool.hold(ref) as held:
                assert content(held) == truth(ref)
        assert spool.peak_bytes <= 3 * SIZE + 6 * SIZE
    assert {begin for begin, _ in store.asked} == {ref.begin_bytes for ref in refs}


def test_what_is_held_stays_and_several_may_hold_more_than_the_limit() -> None:
    """Ten holders at once of tensors of which the limit has room for two."""
    refs = [ref_at(place) for place in range(10)]
    barrier = threading.Barrier(10, timeout=20)
    with spool_of(Store(), refs, limit_bytes=2 * SIZE) as spool, ThreadPoolExecutor(10) as pool:

        def read(ref: TensorRef) -> bool:
            with spool.hold(ref) as held:
                barrier.wait()  # nobody lets go before all hold
                return content(held) == truth(ref)

        assert all(pool.map(read, refs))


def test_a_tensor_told_of_twice_waits_for_its_second_reader() -> None:
    """Between its two readings others come and go; it is fetched once."""
    refs = [ref_at(place) for place in range(8)]
    store = Store()
    with spool_of(store, [refs[0], *refs[1:], refs[0]], limit_bytes=4 * SIZE) as spool:
        for ref in [refs[0], *refs[1:], refs[0]]:
            with spool.hold(ref) as held:
                assert content(held) == truth(ref)
    assert store.asked.count((refs[0].begin_bytes, refs[0].end_bytes)) == 1


def test_a_failure_is_told_to_whoever_holds_and_asked_anew() -> None:
    """One range fails: its reader hears the sentence, others go on, and a second hold gets another try."""
    refs = [ref_at(place) for place in range(5)]
    store = Store()
    store.errors = {refs[2].begin_bytes: HubError("No.", hint="Later.")}
    with spool_of(store, refs) as spool:
        for ref in refs[:2]:
            with spool.hold(ref) as held:
                assert content(held) == truth(ref)
        with pytest.raises(HubError, match="No") as told, spool.hold(refs[2]):
            pass
        assert told.value.hint == "Later."
        with spool.hold(refs[2]) as held:
            assert content(held) == truth(refs[2])


def test_a_full_disk_and_a_fault_of_ours_are_sentences() -> None:
    """Neither ends a thread in silence."""
    refs = [ref_at(place) for place in range(2)]
    store = Store()
    store.errors = {
        refs[0].begin_bytes: OSError(28, "No space left on device"),
        refs[1].begin_bytes: ZeroDivisionError(),
    }
    with spool_of(store, refs) as spool:
        with pytest.raises(OperationError, match="no space left"), spool.hold(refs[0]):
            pass
        with pytest.raises(HubError, match="ZeroDivisionError"), spool.hold(refs[1]):
            pass


def test_a_wait_ends_when_the_observer_says_so() -> None:
    """The server hangs; whoever waits leaves, and the spool ends although its threads still hang."""
    refs = [ref_at(place) for place in range(20)]
    store, observer = Store(), Watching()
    store.gate.clear()
    start = time.monotonic()
    with spool_of(store, refs, observer=observer) as spool:
        threading.Timer(0.2, lambda: setattr(observer, "is_stopping", True)).start()
        with pytest.raises(CancelledError), spool.hold(refs[0]):
            pass
    assert time.monotonic() - start < 5  # the store would hang for ever
    assert store.is_interrupted
    assert len(store.asked) <= 6


def test_local_tensors_pass_through(tmp_path: Path) -> None:
    """A tensor of a file that is here is read there."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(DATA[:100])
    from lora_lab.storage.files import stamp

    ref = TensorRef(stamp(path), "a", DType.U8, (10,), 20, 30)
    with spool_of(Store(), [ref]) as spool, spool.hold(ref) as held:
        assert content(held) == DATA[20:30]
        assert held.ref is ref


def test_a_remote_tensor_is_not_read_as_if_it_were_here() -> None:
    """Whatever reads local files alone says where the tensor is."""
    from lora_lab.errors import MissingFileError
    from lora_lab.storage.reading import read_tensor

    stamp = FileStamp(FILE.place, len(DATA), etag="e")
    with pytest.raises(MissingFileError, match="is on the Hub"):
        read_tensor(TensorRef(stamp, "a", DType.U8, (10,), 0, 10))


def test_what_one_analysis_fetched_the_next_one_reads() -> None:
    """The same ranges are not asked for again; others are, and what nobody reads then is let go."""
    refs, kept, store = [ref_at(place) for place in range(10)], Kept(), Store()
    for wanted in (refs, refs[:6], refs):
        with spool_of(store, wanted, kept=kept) as spool:
            for ref in wanted:
                with spool.hold(ref) as held:
                    assert content(held) == truth(ref)
    asked = [begin for begin, _ in store.asked]
    assert sorted(asked[:10]) == [ref.begin_bytes for ref in refs]
    assert sorted(asked[10:]) == [ref.begin_bytes for ref in refs[6:]]


def test_what_is_kept_leaves_room_to_fetch_ahead() -> None:
    """The last ranges of an analysis fill the limit; the next one begins with half of them at most."""
    refs, kept, store = [ref_at(place) for place in range(30)], Kept(), Store()
    for _ in range(2):
        with spool_of(store, refs, kept=kept, limit_bytes=8 * SIZE) as spool:
            for ref in refs:
                with spool.hold(ref) as held:
                    assert content(held) == truth(ref)
            assert spool.peak_bytes <= 8 * SIZE
    assert 56 <= len(store.asked) <= 59
