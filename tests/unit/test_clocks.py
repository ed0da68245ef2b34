"""A clock that jumps by a day changes nothing that matters: whatever waits or expires goes by the monotonic clock.

The clock of the wall is read where a time is shown or written down, and where times of files or rows from other runs
are compared with now; each such place is named here, with why a jump does no harm.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.base.deadline import Deadline
from rbee.registry import Registry
from tests.unit.registry.test_registry import worker

ROOT = Path(__file__).parents[2]
DAY_S = 86_400.0

SHOWN = "shown or written down, never compared"
HINT = "a row's age: one that is too old or in the future is no hint, and the hive is asked"
AGE = "how long a file lies unused: days, which a jump shortens or lengthens; what is in use is never removed"
ALLOWED = {
    "rbee/infer/partial.py": SHOWN,
    "rbee/audit/__init__.py": SHOWN,
    "rbee/chat/store/sessions.py": SHOWN,
    "rbee/cli/main.py": SHOWN,
    "rbee/cli/keys.py": SHOWN,
    "rbee/cli/usage.py": "the first day that counts of those that are shown",
    "rbee/gateway/records/records.py": SHOWN,
    "rbee/gateway/records/usage.py": SHOWN,
    "rbee/cli/unlinked.py": SHOWN,
    "rbee/link/server.py": SHOWN,
    "rbee/fleet/workers.py": HINT,
    "rbee/cleanup/keeper_home.py": AGE,
    "rbee/cleanup/run.py": HINT,
    "rbee/setup/wheels/kept.py": "ages of what interrupted builds left: a jump costs at most a build from its start",
    "rbee/setup/wheels/prune.py": AGE,
    "rbee/registry/__init__.py": HINT,
    "rbee/registry/file.py": SHOWN,
    "rbee/registry/rows.py": HINT,
    "remote/rbee_remote/system/audit.py": SHOWN,
    "remote/rbee_remote/hive/models/registration.py": SHOWN,
    "remote/rbee_remote/hive/server.py": SHOWN,
    "remote/rbee_remote/hive/record.py": SHOWN,
    "remote/rbee_remote/protocol/audit_log.py": SHOWN,
    "remote/rbee_remote/system/common.py": AGE,
    "remote/rbee_remote/worker/templates/jinja.py": SHOWN,
    "remote/rbee_remote/worker/templates/render_process.py": "so that the time zone is read while files can be",
    "remote/rbee_remote/worker/http/answers/answer.py": SHOWN,
    "remote/rbee_remote/worker/http/openai/routes.py": SHOWN,
}
WALL_CLOCK = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def test_the_wall_clock_is_read_in_known_places_alone() -> None:
    found = {str(path.relative_to(ROOT)) for path in sources() if reads_wall_clock(ast.parse(path.read_text()))}
    assert found - ALLOWED.keys() == set(), "take the monotonic clock, or say here why a jump does no harm"
    assert ALLOWED.keys() - found == set(), "no such place any more"


@pytest.mark.parametrize("jump", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_row_from_before_the_jump_is_no_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    now = time.time()
    with Registry.open(tmp_path / "workers.db") as registry:
        registry.upsert_worker("gpu1", worker())
        assert len(registry.fresh_rows()) == 1
        monkeypatch.setattr(time, "time", lambda: now + jump)
        assert registry.fresh_rows() == []
        registry.upsert_worker("gpu1", worker())
        assert len(registry.fresh_rows()) == 1


@pytest.mark.parametrize("jump", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_deadline_does_not_move(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    deadline, now = Deadline.after(60.0), time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    left = deadline.left()
    assert left is not None
    assert 50.0 < left <= 60.0


def sources() -> Iterator[Path]:
    for folder in ("rbee", "remote/rbee_remote"):
        yield from (ROOT / folder).rglob("*.py")


def reads_wall_clock(tree: ast.AST) -> bool:
    """Whether `time.time`, `datetime.now` and the like are named, called or handed on."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                if (owner, name) in WALL_CLOCK:
                    return True
    return False
