"""Pages that the real controllers of SGLang back up and prefetch are the same bit for bit, and nothing stays behind.

A page of these pools has 4096 bytes in each layer, or a multiple; SGLang's page copies between device and host are not part
of it.  Real are the host pools, the controllers, their threads, and all below.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from server_python import CONTROLLERS, NEW, OLD, cache_arguments, lasting

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]  # the first may install SGLang

POOLS = [
    *(("multi_head", layout) for layout in ("layer_first", "page_first", "page_first_direct", "page_head")),
    *(("mla", layout) for layout in ("layer_first", "page_first", "page_first_direct")),
]


def names(values):
    return "-".join(map(str, values)) if isinstance(values, tuple) else str(values)


@pytest.fixture(params=CONTROLLERS, ids=names)
def release_and_controller(request):
    return request.param


@pytest.fixture
def process(release_and_controller, shared):
    return shared(release_and_controller[0])


@pytest.fixture
def controller(release_and_controller):
    return release_and_controller[1]


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize(("kind", "layout"), POOLS)
def test_pages_in_every_layout_come_back_bit_for_bit(process, controller, kind, layout, lifetime, tmp_path):
    before = process.call("held")
    with process.cache(tmp_path, lifetime, controller=controller, kind=kind, layout=layout):
        assert process.call("back_up", prompt=1, pages=130) == 130  # more than one batch of 128
        process.call("wipe")
        assert process.call("prefetch", prompt=1, pages=130) == {"loaded": 130, "right": 130, "outside": 0}
    assert process.call("held") == before


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("pages", [1, 2, 127, 128, 129, 1000])
def test_any_number_of_pages_comes_back(process, controller, pages, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller, pages=1000):
        assert process.call("back_up", prompt=1, pages=pages) == pages
        process.call("wipe")
        assert process.call("prefetch", prompt=1, pages=pages) == {
            "loaded": pages,
            "right": pages,
            "outside": 0,
        }


@pytest.mark.parametrize(
    ("lifetime", "options"),
    [
        ("scoped", {"sync": True}),
        ("scoped", {"use_direct_io": True}),
        ("scoped", {"use_posix_aio": "true"}),
        ("pooled", {"use_direct_io": True}),
        ("pooled", {"verify": "none"}),
    ],
    ids=["sync", "scoped-direct", "posix_aio", "pooled-direct", "unverified"],
)
def test_options_give_the_same_pages(process, controller, lifetime, options, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller, **options):
        assert process.call("back_up", prompt=1, pages=130) == 130
        process.call("wipe")
        assert process.call("prefetch", prompt=1, pages=130)["right"] == 130


@pytest.mark.parametrize("lifetime", ["scoped", "pooled", "try_finally"])
def test_calls_of_an_attached_storage_leave_no_descriptor(process, controller, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller):
        held = []
        for prompt in range(4):
            process.call("back_up", prompt=prompt, pages=50)
            process.call("prefetch", prompt=prompt, pages=50)
            held.append(lasting(process.call("held")))
    assert held == [held[0]] * 4


def test_leaky_leaves_two_descriptors_for_each_page_of_each_call(process, controller, tmp_path):
    with process.cache(tmp_path, "leaky", controller=controller):
        counts = [len(process.call("held")["descriptors"])]
        for prompt in range(3):
            assert process.call("back_up", prompt=prompt, pages=50) == 50
            counts.append(len(process.call("held")["descriptors"]))
            assert process.call("prefetch", prompt=prompt, pages=50)["right"] == 50
            counts.append(len(process.call("held")["descriptors"]))
    growth = [after - before for before, after in pairwise(counts)]
    assert growth == [2 * 50] * 6  # K and V


def test_the_comparison_sees_one_wrong_bit(process, controller, tmp_path):
    with process.cache(tmp_path, "scoped", controller=controller):
        process.call("back_up", prompt=1, pages=20)
        file = next(tmp_path.glob("*_v"))
        stored = bytearray(file.read_bytes())
        stored[1000] ^= 1
        file.write_bytes(stored)
        found = process.call("prefetch", prompt=1, pages=20)
    assert (found["loaded"], found["right"] < 20) == (20, True)  # scoped has no checksums


def test_pooled_does_not_load_a_page_with_a_wrong_bit(process, controller, tmp_path):
    with process.cache(tmp_path, "pooled", controller=controller):
        process.call("back_up", prompt=1, pages=20)
        with open(tmp_path / "pooled/segment-0000", "r+b") as segment:
            segment.seek(100_000)
            byte = segment.read(1)
            segment.seek(100_000)
            segment.write(bytes([byte[0] ^ 1]))
        found = process.call("prefetch", prompt=1, pages=20)
    assert found["loaded"] == found["right"] < 20


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_a_prefix_that_is_stored_in_part_is_loaded_in_part(process, controller, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller):
        process.call("back_up", prompt=1, pages=20)
        process.call("wipe")
        found = process.call("prefetch", prompt=1, pages=50)
        assert (found["loaded"], found["right"]) == (20, 20)
        assert process.call("prefetch", prompt=2, pages=50) == {"loaded": 0, "right": 0, "outside": 0}


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_storage_that_is_detached_and_attached_again_has_its_pages(process, controller, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller):
        process.call("back_up", prompt=1, pages=50)
        first = process.call("held")
        for _ in range(3):
            process.call("detach")
            process.call("wipe")
            process.call("attach")
            assert process.call("prefetch", prompt=1, pages=50)["right"] == 50
        assert len(process.call("held")["descriptors"]) <= len(first["descriptors"])
        assert set(process.call("threads").values()) == {True}


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_cleared_storage_has_no_pages(process, controller, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, controller=controller):
        process.call("back_up", prompt=1, pages=50)
        process.call("clear")
        assert process.call("prefetch", prompt=1, pages=50)["loaded"] == 0
        assert process.call("back_up", prompt=1, pages=50) == 50


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_backups_and_prefetches_at_the_same_time_give_the_right_bytes(
    process, controller, lifetime, tmp_path
):
    with process.cache(tmp_path, lifetime, controller=controller):
        moved = process.call("mix", operations=200, pages=16, at_once=8)
        assert set(process.call("threads").values()) == {True}
    assert moved["wrong"] == 0
    assert moved["stored"] == 100
    assert moved["loaded"] >= 80  # the first prompts are asked for before they are stored


def test_a_storage_without_the_interface_v1_is_not_attached(process, controller, tmp_path):
    """The controller would store pages as values, and look for pages: it would find none."""
    arguments = cache_arguments(tmp_path, controller=controller, interface_v1=0)
    with pytest.raises(AssertionError, match="interface_v1: set it to 1"):
        process.call("open", **arguments)


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("kind", ["multi_head", "mla"])
def test_a_type_of_8_bits_does_not_find_the_pages_of_another(process, controller, kind, lifetime, tmp_path):
    """Both are uint8 in a host pool, and in 0.5.23 the host pool does not know its device pool."""
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        with process.cache(tmp_path, lifetime, controller=controller, kind=kind, dtype=dtype):
            assert process.call("prefetch", prompt=1, pages=3)["loaded"] == 0
            assert process.call("back_up", prompt=1, pages=3) == 3
            process.call("wipe")
            assert process.call("prefetch", prompt=1, pages=3)["right"] == 3


@pytest.mark.parametrize("version", [OLD, NEW])
def test_what_loses_its_pages_to_the_capacity_answers_on(version, shared, tmp_path):
    process = shared(version)
    with process.cache(tmp_path, "pooled", capacity_gb=0.02, segment_mb=1):  # 800 pages
        for prompt in range(10):
            assert process.call("back_up", prompt=prompt, pages=150) == 150
        process.call("wipe")
        assert process.call("prefetch", prompt=0, pages=150)["loaded"] == 0
        assert process.call("prefetch", prompt=9, pages=150) == {"loaded": 150, "right": 150, "outside": 0}
