"""Indexes of prebuilt llama-cpp-python wheels: which are asked for a machine, in which order, and how long.

    inventory: wheel_indexes     in turn; then, unless wheel_index = "off", that of llama-cpp-python's own releases
    $RBEE_WHEEL_INDEX            one index in place of them all, for every backend: URL#sha256=HEX,sha256=HEX; or "off"

Rules
- A wheel runs where somebody answers for it: by its hash, by the key that signed the index's SHA256SUMS, or, for the
  official index, by default. The wheel cache writes down who that was, and `Builders` says for which machine it counts.
- A hash in the variable counts on every machine, and as long as the variable is set: it is said for one command.
- Where an index gives neither, it chooses what runs. Its wheels are for nodes whose `builds_from` has its address, and
  never for this machine.
- No index can hold a command up: the first byte has its time, so has each further MiB, and so has all of it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rbee.base import installation
from rbee.base.errors import ConfigError, NodeError
from rbee.base.events import Emit
from rbee.inventory import WheelIndex
from rbee.inventory.wheel_indexes import check_address
from rbee.render.text import neutralise
from rbee.setup.base import child, cuda, pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import OFFICIAL_URL, Builders
from rbee.setup.index.fetch import Request
from rbee_remote.protocol import ErrorCode

ENV_INDEX = "RBEE_WHEEL_INDEX"
OFF = "off"
#: Of llama-cpp-python's own releases: no hashes, wheels for Linux with any processor of the kind since AVX2 (2013), and
#: for CUDA with the toolkit's libraries on the node, or brought along by rbee.
OFFICIAL = WheelIndex(OFFICIAL_URL)
#: Its folders by the toolkit's major version, whose libraries a wheel needs; the oldest minor version first, because
#: that asks least of the driver.
_OFFICIAL_CUDA = {
    11: ("cu118",),
    12: ("cu121", "cu122", "cu123", "cu124", "cu125"),
    13: ("cu130", "cu132"),
}

#: Seconds until an index has shown its page and the first MiB of a wheel, and for each further one. A build takes
#: minutes: what is slower than 35 kB/s is not worth the wait.
FIRST_S = 20.0
STALL_S = 30.0
#: Seconds for all of it: for the processor no longer than a build takes, which takes hours for GPUs.
_ALL_S = {"cpu": 900.0}
_ALL_GPU_S = 3600.0
#: Bytes of a wheel. For the processor alone the largest official one has some 40 MB; those for GPUs can be as large as
#: what GitHub takes.
_LARGEST = {"cpu": 2**29}
_LARGEST_GPU = 2 * 2**30
_LONGEST_REASON = 300


def indexes(
    backend: str, target: Target, builders: Builders, environment: Mapping[str, str] = os.environ
) -> Sequence[WheelIndex]:
    """Those to ask for a machine, in turn. Raises ConfigError for a variable that names none."""
    if named := environment.get(ENV_INDEX):
        return [] if named == OFF else [_from_variable(named)]
    official = OFFICIAL_URL in builders.others and target.system == "Linux" and folders(OFFICIAL, backend, target)
    return [index for index in (*builders.indexes, *([OFFICIAL] if official else [])) if index.is_for(backend)]


def _from_variable(text: str) -> WheelIndex:
    url, _, fragment = text.partition("#")
    hashes = [part for part in fragment.split(",") if part]
    if wrong := [part for part in hashes if not re.fullmatch(r"sha256=[0-9a-f]{64}", part)]:
        raise ConfigError(f"{ENV_INDEX}: {wrong[0]!r} is not a hash", hint="write #sha256=HEX, several with commas")
    try:
        return WheelIndex(check_address(url), sha256=tuple(part.removeprefix("sha256=") for part in hashes))
    except ValueError as error:
        raise ConfigError(f"{ENV_INDEX}: {error}", hint=f'write the address of an index, or "{OFF}"') from error


def named_now(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """What the variable's hashes vouch for, on every machine, as long as it is set. Raises ConfigError."""
    named = environment.get(ENV_INDEX, OFF)
    return frozenset() if named in ("", OFF) else _from_variable(named).vouchers()


def may_serve(index: WheelIndex, builders: Builders) -> bool:
    return bool(index.vouchers()) or index.name in builders.others


def passed_over(index: WheelIndex) -> str:
    """What to tell where its wheels could be wanted and must not be used."""
    return f"{index.name} is not used for llama.cpp: nothing vouches for it, and builds_from does not name it"


def folders(index: WheelIndex, backend: str, target: Target) -> tuple[str, ...]:
    """Where its wheels for a backend are."""
    if index != OFFICIAL:
        return (backend,)
    if backend == "cuda":
        majors = sorted(target.cudart | cuda.brought(target))
        return tuple(folder for major in majors for folder in _OFFICIAL_CUDA.get(major, ()))
    return (backend,) if backend == "cpu" else ()


async def fetch(index: WheelIndex, backend: str, target: Target, folder: Path, emit: Emit) -> Path:
    """The wheel of the locked version, in `folder`. Raises NodeError that says why there is none."""
    wanted = requirements.llama()
    request = Request(
        index.url,
        folders(index, backend, target),
        wanted.version,
        [*target.wheel_platforms(), f"linux_{target.machine}"],
        target.python,
        index.sha256,
        index.key,
        _LARGEST.get(backend, _LARGEST_GPU),
        str(folder),
        target.cuda,
        sorted(target.gpus),
    )
    hear = pip.report_bytes(emit, "llama", f"fetching {wanted.name} {wanted.version} for {backend} from {index.name}")
    said = [""]

    def keep_last(line: str) -> None:
        hear(line)
        said[0] = line

    all_s = _ALL_S.get(backend, _ALL_GPU_S)
    status = await _in_time(request, keep_last, await pip.environment(folder), all_s)
    if status == 0 and said[0].startswith("fetched "):
        return folder / Path(said[0].removeprefix("fetched ")).name
    raise NodeError(ErrorCode.BOOTSTRAP_FAILED, neutralise(said[0].removeprefix("ERROR: "))[:_LONGEST_REASON])


async def _in_time(request: Request, on_line: child.OnLine, env: dict[str, str], all_s: float) -> int:
    """The exit status. Raises NodeError where nothing comes for too long; the process is gone by then."""
    loop = asyncio.get_running_loop()
    words = [*installation.python(), "-m", "rbee.setup.index.fetch"]
    late = f"nothing came for {FIRST_S:.0f} s"
    end = loop.time() + all_s
    try:
        async with asyncio.timeout(FIRST_S) as limit:

            def hear(line: str) -> None:
                nonlocal late
                late = f"it gives less than 1 MiB in {STALL_S:.0f} s"
                if loop.time() + STALL_S > end:
                    late = f"it takes longer than {all_s / 60:.0f} min"
                limit.reschedule(min(loop.time() + STALL_S, end))
                on_line(line)

            return await child.run(words, hear, env=env, stdin=request.text())
    except TimeoutError as error:
        raise NodeError(ErrorCode.BOOTSTRAP_FAILED, late) from error
