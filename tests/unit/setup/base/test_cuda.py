"""Which CUDA a machine takes, what is compiled for it, and which wheel covers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.setup.base import cuda
from rbee.setup.base.cuda import Architecture, Code
from rbee.setup.base.platforms import Target, Version


def machine(driver: Version = (13, 0), *gpus: Version) -> Target:
    return Target("Linux", "x86_64", "glibc", (2, 36), (3, 11), cuda=driver, gpus=frozenset(gpus))


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (machine((13, 0), (8, 9)), 13),
        (machine((13, 2), (7, 5), (12, 0)), 13),
        (machine((12, 4), (8, 9)), 12),
        (machine((13, 0), (7, 0)), 12),
        (machine((13, 0), (7, 0), (12, 0)), None),
        (machine((12, 8), (12, 0)), None),
        (machine((11, 4), (8, 0)), None),
        (machine((), (8, 0)), None),
        (machine((13, 0)), 13),
    ],
)
def test_the_line_of_toolkits_is_the_newest_that_driver_and_gpus_allow(target: Target, line: int | None) -> None:
    found = cuda.line(target)
    assert (found.major if found else None) == line
    if found is None:
        assert cuda.why_no_line(target)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (machine((12, 8), (12, 0)), "driver 580"),
        (machine((11, 4), (8, 0)), "driver 525"),
        (machine((), (8, 0)), "does not say"),
        (machine((13, 0), (7, 0), (12, 0)), "7.0"),
    ],
)
def test_why_there_is_none_names_what_helps(target: Target, says: str) -> None:
    assert says in cuda.why_no_line(target)


def code(sass: str = "", ptx: str = "", line: int = 12, by: Version = (12, 4)) -> Code:
    some = [frozenset(filter(None, map(Architecture.read, text.split()))) for text in (sass, ptx)]
    return Code(line, some[0], some[1], by if ptx else ())


@pytest.mark.parametrize(
    ("has", "target", "runs"),
    [
        (code("8.9"), machine((12, 0), (8, 9)), True),
        (code("8.0"), machine((12, 0), (8, 9)), True),  # an older minor
        (code("8.9"), machine((12, 0), (8, 0)), False),
        (code("8.0"), machine((12, 8), (9, 0)), False),  # another major
        (code("8.6"), machine((12, 8), (8, 7)), False),  # Tegra
        (code("8.7"), machine((12, 8), (8, 9)), False),
        (code("9.0a"), machine((12, 8), (9, 0)), True),
        (code("12.0a"), machine((13, 0), (12, 1)), False),
        (code("10.0f"), machine((13, 0), (10, 3)), True),
        (code(ptx="8.0"), machine((12, 4), (9, 0)), True),
        (code(ptx="8.0"), machine((12, 3), (9, 0)), False),  # the driver is older than the PTX
        (code(ptx="9.0"), machine((12, 4), (8, 9)), False),
        (code(ptx="9.0a"), machine((13, 0), (10, 0)), False),
        (code("8.9", line=13), machine((12, 8), (8, 9)), False),
        (code("8.0 9.0"), machine((12, 8), (8, 9), (9, 0)), True),
        (code("8.0"), machine((12, 8), (8, 9), (9, 0)), False),  # all GPUs, or none
        (code("8.0", line=0), machine((12, 8), (8, 0)), False),
    ],
)
def test_a_wheel_covers_a_machine_when_each_of_its_gpus_runs_something_of_it(
    has: Code, target: Target, runs: bool
) -> None:
    assert (cuda.obstacle(has, target) == "") is runs


def test_one_build_serves_a_fleet() -> None:
    fleet = [machine((13, 0), (8, 9)), machine((13, 0), (12, 0), (8, 6)), machine((13, 0))]
    assert cuda.flags(fleet)[-1] == "-DCMAKE_CUDA_ARCHITECTURES=86-real;89-real;120a-real"
    assert cuda.flags([machine()]) == ("-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF")


GPUS = st.sampled_from([(5, 2), (7, 0), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)])
DRIVERS = st.sampled_from([(12, 0), (12, 4), (12, 9), (13, 0), (13, 3)])


@given(DRIVERS, st.frozensets(GPUS, min_size=1, max_size=4))
def test_what_is_built_for_a_machine_covers_it(driver: Version, gpus: frozenset[Version]) -> None:
    target = machine(driver, *gpus)
    if line := cuda.line(target):
        built = cuda.architectures([target]).split(";")
        made = [word.removesuffix("-real") for word in built]
        names = [f"{word.rstrip('a')[:-1]}.{word.rstrip('a')[-1]}{'a' * word.endswith('a')}" for word in made]
        assert cuda.obstacle(code(" ".join(names), line=line.major), target) == ""


ARCHITECTURES = st.builds(Architecture, GPUS, st.sampled_from(["", "a", "f"]))


@given(
    st.builds(
        Code,
        st.integers(0, 99),
        st.frozensets(ARCHITECTURES),
        st.frozensets(ARCHITECTURES),
        st.one_of(st.just(()), st.tuples(st.integers(11, 13), st.integers(0, 9))),
    )
)
def test_what_is_written_down_is_read_again(has: Code) -> None:
    assert Code.read(has.text) == has


@given(st.text(max_size=40))
def test_what_is_no_code_is_none(text: str) -> None:
    found = Code.read(text)
    assert found is None or Code.read(found.text) == found
