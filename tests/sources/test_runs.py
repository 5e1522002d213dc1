"""Ranges to ask for: every tensor once, few bytes besides, neighbours together, in the order of need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.dtypes import DType
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.sources.runs import coalesced

MEBIBYTE = 1 << 20
FILES = [FileStamp(f"hf://org/name@0/model-{place}.safetensors", 1 << 40, etag=f"{place}") for place in range(3)]


def ref_of(file: FileStamp, begin: int, size: int) -> TensorRef:
    return TensorRef(file, f"{begin}+{size}", DType.U8, (size,), begin, begin + size)


@st.composite
def layouts(draw: st.DrawFn) -> list[TensorRef]:
    """Tensors in files, side by side or apart, some of them asked for, in any order, a few twice."""
    refs = []
    for file in FILES[: draw(st.integers(1, 3))]:
        position = draw(st.integers(8, 5000))
        for size, gap in draw(
            st.lists(st.tuples(st.integers(0, 80 * MEBIBYTE) | st.integers(0, 500), st.integers(0, 3000)), max_size=12)
        ):
            refs.append(ref_of(file, position, size))
            position += size + gap
    return draw(st.lists(st.sampled_from(refs), max_size=30)) if refs else []


@given(layouts())
def test_every_tensor_is_in_one_range_and_hardly_anything_else(wanted: list[TensorRef]) -> None:
    """The ranges cover what was asked for, each tensor in one of them, and at most a 32nd of the bytes besides."""
    runs = coalesced(wanted)
    there = [ref for run in runs for ref in run.refs]
    assert sorted(there, key=repr) == sorted({ref for ref in wanted if ref.size_bytes}, key=repr)
    for run in runs:
        assert all(run.begin_bytes <= ref.begin_bytes and ref.end_bytes <= run.end_bytes for ref in run.refs)
        assert all(ref.file == run.file for ref in run.refs)
        assert min(ref.begin_bytes for ref in run.refs) == run.begin_bytes
        assert max(ref.end_bytes for ref in run.refs) == run.end_bytes
        tensors = sum(ref.size_bytes for ref in run.refs)
        assert run.size_bytes <= tensors + tensors / 32
        assert run.size_bytes <= 64 * MEBIBYTE or len(run.refs) == 1


@given(layouts())
def test_ranges_come_in_the_order_of_need(wanted: list[TensorRef]) -> None:
    """The range of what is read first is asked for first."""
    first = {ref: place for place, ref in reversed(list(enumerate(wanted)))}
    needs = [min(first[ref] for ref in run.refs) for run in coalesced(wanted)]
    assert needs == sorted(needs)


def test_neighbours_are_one_range_until_it_is_long() -> None:
    """Tensors of 20 MiB side by side: three fit 64 MiB."""
    refs = [ref_of(FILES[0], 100 + 20 * MEBIBYTE * place, 20 * MEBIBYTE) for place in range(7)]
    assert [len(run.refs) for run in coalesced(refs)] == [3, 3, 1]


def test_a_gap_is_bridged_where_it_costs_little() -> None:
    """A gap of a 64th of two tensors is; one of a 16th is not."""
    near = [ref_of(FILES[0], 0, 3200), ref_of(FILES[0], 3300, 3200)]
    far = [ref_of(FILES[0], 0, 3200), ref_of(FILES[0], 3600, 3200)]
    assert [len(coalesced(refs)) for refs in (near, far)] == [1, 2]


def test_a_part_of_a_tensor_that_is_fetched_anyhow_is_no_range_of_its_own() -> None:
    """One expert of a tensor of all, and the whole of it."""
    whole, part = ref_of(FILES[0], 1000, 4000), ref_of(FILES[0], 2000, 1000)
    (run,) = coalesced([part, whole])
    assert (run.begin_bytes, run.end_bytes, len(run.refs)) == (1000, 5000, 2)


def test_what_is_read_much_later_is_not_fetched_with_its_neighbour() -> None:
    """A vector between two matrices that is read at the very end would keep their range on the disk until then."""
    matrices = [ref_of(FILES[0], place * 60 * MEBIBYTE, 60 * MEBIBYTE - 100) for place in range(12)]
    vectors = [ref_of(FILES[0], ref.end_bytes, 100) for ref in matrices]
    runs = coalesced([*matrices, *vectors])
    assert [run.refs for run in runs[:8]] == [(ref,) for ref in matrices[:8]]  # batches of 256 MiB: four matrices
    assert not {ref for run in runs[:8] for ref in run.refs} & set(vectors)
