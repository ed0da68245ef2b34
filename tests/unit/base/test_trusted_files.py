"""Whose file is believed: OpenSSH's rules as tables, and then files and folders as a neighbour may leave them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rbee import audit
from rbee.audit.check import last_entries, verify_keeper
from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings, check_home, keeper_id, make_private_folder
from rbee.base.trusted_files import Fault, check, fault, is_exposed, is_own_group, read
from rbee.inventory import load
from rbee.inventory.edit import remove_node
from rbee.models.hub_token import hub_token
from rbee.models.store import ModelStore
from rbee.registry import Registry
from rbee.setup.base.payload import build_payload
from rbee.setup.base.platforms import Target
from rbee.setup.wheels.cache import WheelCache

ME, ROOT, OTHER = 1000, 0, 1001
MY_GROUP, STAFF = 1000, 50
FILE, FOLDER, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")


def status(mode: int, uid: int = ME, gid: int = MY_GROUP) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (status(FILE | 0o600), None),
        (status(FILE | 0o644), None),
        (status(FILE | 0o644, ROOT, ROOT), None),
        (status(FILE | 0o444, OTHER), Fault.FOREIGN),
        (status(FILE | 0o600, OTHER), Fault.FOREIGN),
        (status(FILE | 0o646), Fault.OTHERS),
        (status(FILE | 0o602, ROOT, ROOT), Fault.OTHERS),
        (status(FILE | 0o664), None),
        (status(FILE | 0o664, ME, STAFF), Fault.GROUP),
        (status(FILE | 0o664, ROOT, STAFF), Fault.GROUP),
        (status(FOLDER | 0o755), None),
        (status(FOLDER | 0o775), None),
        (status(FOLDER | 0o2775, ME, STAFF), Fault.GROUP),
        (status(FOLDER | 0o1777, ROOT, ROOT), Fault.OTHERS),
        (status(LINK | 0o777), None),
        (status(LINK | 0o777, OTHER), Fault.FOREIGN),
    ],
)
def test_a_file_is_ones_own_or_roots_and_nobody_else_may_write(found: os.stat_result, expected: Fault | None) -> None:
    assert fault(found, ME, lambda gid: gid == MY_GROUP) is expected


def test_root_believes_only_root() -> None:
    assert fault(status(FILE | 0o644, ROOT, ROOT), ROOT, lambda _: False) is None
    assert fault(status(FILE | 0o644, ME), ROOT, lambda _: False) is Fault.FOREIGN


@pytest.mark.parametrize(
    ("found", "exposed"),
    [
        (status(FILE | 0o600), False),
        (status(FILE | 0o400), False),
        (status(FILE | 0o640), True),
        (status(FILE | 0o604), True),
        (status(FILE | 0o610), True),
        (status(FILE | 0o640, ROOT, STAFF), False),
        (status(FILE | 0o444, ROOT, ROOT), False),
    ],
)
def test_a_secret_is_exposed_where_its_owner_lets_others_read_it(found: os.stat_result, exposed: bool) -> None:
    assert is_exposed(found, ME) is exposed


def user(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", f"/home/{name}", "/bin/sh"))


@pytest.mark.parametrize(
    ("group", "everybody", "own"),
    [
        (("bee", "x", 1000, []), [user("bee", 1000, 1000), user("ant", 1001, 1001)], True),
        (("bee", "x", 1000, ["bee"]), [], True),
        (("bee", "x", 1000, ["bee", "ant"]), [], False),
        (("bee", "x", 1000, ["ant"]), [], False),
        (("users", "x", 1000, []), [user("bee", 1000, 1000)], False),
        (("bee", "x", 2000, []), [user("bee", 1000, 1000)], False),
        (("bee", "x", 1000, []), [user("bee", 1000, 1000), user("ant", 1001, 1000)], False),
        (("bee", "x", 1000, []), [user("bee", 1000, 1000), user("bee2", 1000, 1000)], True),
    ],
)
def test_a_private_group_has_the_users_name_and_nobody_else(
    group: tuple[str, str, int, list[str]], everybody: list[pwd.struct_passwd], own: bool
) -> None:
    assert is_own_group(user("bee", 1000, 1000), grp.struct_group(group), lambda: everybody) is own


# --- files and folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "file"
    path.parent.mkdir(mode=0o755)
    path.write_text("content")
    path.chmod(0o644)
    return path


def refused(path: Path, because_of: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(path, "the file")
    assert str(path) in caught.value.message
    assert str(because_of) in caught.value.message
    assert f"chmod go-w {because_of}" in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_private_file_in_a_folder_below_tmp_is_read(file: Path) -> None:
    assert read(file, "the file") == b"content"


def test_a_file_that_everybody_can_write_is_not(file: Path) -> None:
    file.chmod(0o646)
    refused(file, file, "written by everybody")


@pytest.mark.parametrize("level", [0, 1])
def test_nor_one_that_everybody_can_replace(file: Path, level: int) -> None:
    file.parents[level].chmod(0o777)
    refused(file, file.parents[level], "written by everybody")


def test_in_a_sticky_folder_ones_own_file_is_ones_own(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert read(file, "the file") == b"content"
    file.chmod(0o666)
    refused(file, file, "written by everybody")
    with pytest.raises(ConfigError, match="written by everybody"):
        check(file.parent, "the folder")  # others can add to it
    check(file.parent / "missing", "the folder")


def test_ones_own_group_may_write_and_a_shared_one_may_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what this system's user database says of our own group, and of the same one with a guest."""
    if not trusted_files._is_private(file.stat().st_gid):
        pytest.skip("this user has no group of its own")
    own = grp.getgrgid(file.stat().st_gid)
    file.chmod(0o664)
    file.parent.chmod(0o2775)
    assert read(file, "the file") == b"content"
    shared = grp.struct_group((own.gr_name, "x", own.gr_gid, ["guest"]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: shared)
    trusted_files._is_private.cache_clear()
    try:
        refused(file, file.parent, f"written by the group {own.gr_name}")
    finally:
        trusted_files._is_private.cache_clear()


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """As Linux keeps it. entries: tag, rights, id."""
    return struct.pack("<L", 2) + b"".join(struct.pack("<HHL", *entry) for entry in entries)


def with_list(tag: int, rights: int, number: int) -> bytes:
    nobody = 2**32 - 1
    named = [(tag, rights, number)]
    return access_list(
        (1, 6, nobody), *named * (tag == 2), (4, 6, nobody), *named * (tag == 8), (16, 6, nobody), (32, 4, nobody)
    )


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ((2, 6, 65534), Fault.LISTED),
        ((8, 6, 65533), Fault.LISTED),
        ((2, 2, 65534), Fault.LISTED),
        ((2, 4, 65534), None),
        ((8, 5, 65533), None),
        ((2, 6, 0), None),
        ((2, 6, os.getuid()), None),
    ],
)
def test_a_list_that_lets_somebody_else_write(
    file: Path, entry: tuple[int, int, int], found: Fault | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this group would be trusted: by its mode alone the file is sound."""
    monkeypatch.setattr(trusted_files, "_is_private", lambda gid: gid != 65533)
    try:
        os.setxattr(file, "system.posix_acl_access", with_list(*entry))
    except (OSError, AttributeError):  # a file system without such lists
        file.chmod(0o664)
        monkeypatch.setattr(
            os, "getxattr", lambda path, _: with_list(*entry) if path == str(file) else b"", raising=False
        )
    assert stat.S_IMODE(file.stat().st_mode) == 0o664
    if found is None:
        assert read(file, "the file") == b"content"
        return
    refused(file, file, "access control list")
    file.chmod(0o644)  # as the hint says
    assert read(file, "the file") == b"content"


def test_links_are_followed_to_where_each_of_them_can_be_replaced(file: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "link").symlink_to("../mine/../mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "dotfiles" / "link" / "file")
    assert read(link, "the file") == b"content"
    (tmp_path / "dotfiles").chmod(0o777)
    refused(link, tmp_path / "dotfiles", "written by everybody")
    (tmp_path / "dotfiles").chmod(0o755)
    file.parent.chmod(0o777)
    refused(link, file.parent, "written by everybody")


def test_links_in_a_circle_are_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        read(tmp_path / "a", "the file")


def test_what_is_above_the_users_home_is_the_administrators(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    refused(file, tmp_path, "written by everybody")
    monkeypatch.setenv("HOME", str(file.parent))
    assert read(file, "the file") == b"content"
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    refused(file, tmp_path, "written by everybody")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(file, tmp_path, "written by everybody")


def test_a_pipe_has_no_folder_and_is_read(file: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)
    try:
        assert read(Path(f"/dev/fd/{reading}"), "the file") == b"from a pipe"
    finally:
        os.close(reading)


def test_a_file_without_a_name_is_read(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+") as file:
        file.write("from a here-document")
        file.flush()
        (tmp_path / "gone").unlink()
        assert read(Path(f"/dev/fd/{file.fileno()}"), "the file") == b"from a here-document"


def test_what_was_put_in_its_place_after_the_look_is_looked_at_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts a link at a free name in /tmp, which leads to a file of ours that they got us to write."""
    tmp_path.chmod(0o1777)
    name, shared = tmp_path / "name", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "file").write_text("hostile")
    open_it = trusted_files.open_at_once

    def too_late(path: Path) -> int:
        if path == name and not name.is_symlink():
            name.symlink_to(shared / "file")
        return open_it(path)

    monkeypatch.setattr(trusted_files, "open_at_once", too_late)
    refused(name, shared, "written by everybody")


def test_a_fifo_that_was_put_there_after_the_look_is_waited_for_by_nobody(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_it = trusted_files.open_at_once

    def too_late(path: Path) -> int:
        path.unlink()
        os.mkfifo(path)
        path.chmod(0o666)
        return open_it(path)

    monkeypatch.setattr(trusted_files, "open_at_once", too_late)
    refused(file, file, "written by everybody")


def test_a_file_that_is_replaced_while_it_is_read_is_whole(file: Path) -> None:
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            draft = file.with_name("draft")
            draft.write_text("another")
            draft.chmod(0o600)
            draft.replace(file)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        assert {read(file, "the file") for _ in range(300)} <= {b"content", b"another"}
    finally:
        stop.set()
        thread.join()


@AS_ROOT
def test_somebody_elses_file_folder_fifo_and_link_are_refused(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o644)
    (tmp_path / "link").symlink_to(file)
    for path in (tmp_path / "fifo", tmp_path / "link"):
        os.chown(path, 12345, 12345, follow_symlinks=False)
        with pytest.raises(ConfigError, match="belongs to 12345") as caught:
            read(path, "the file")
        assert f"sudo chown root {path}" in caught.value.hint
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to 12345"):
        read(file, "the file")
    os.chown(file, 0, 0)
    os.chown(file.parent, 12345, 12345)
    with pytest.raises(ConfigError, match=f"{file.parent} belongs to 12345") as caught:
        read(file, "the file")
    assert "chown" not in caught.value.hint  # by root's own hand, for what may be a user's home


@AS_ROOT
def test_a_relative_path_has_the_same_hint(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(file, 12345, 12345)
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigError, match="the file file is not used: it belongs to 12345") as caught:
        read(Path("file"), "the file")
    assert f"sudo chown root {file}" in caught.value.hint


@AS_ROOT
def test_roots_folders_are_believed_in_a_user_namespace_that_has_no_root(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show as nobody's there. What they lead to is believed only where it is one's own."""
    os.chown(file.parent, 65534, 65534)
    with pytest.raises(ConfigError, match=f"{file.parent} belongs to"):
        read(file, "the file")
    monkeypatch.setattr(trusted_files, "_unmapped_root", lambda: 65534)
    assert read(file, "the file") == b"content"
    file.parent.chmod(0o757)
    refused(file, file.parent, "written by everybody")
    file.parent.chmod(0o755)
    os.chown(file, 65534, 65534)
    with pytest.raises(ConfigError, match="it belongs to"):
        read(file, "the file")
    with pytest.raises(ConfigError, match="it belongs to"):
        check(file.parent, "the folder")


def test_a_user_namespace_without_root_is_told_from_one_that_has_it() -> None:
    look = [sys.executable, "-c", "from rbee.base import trusted_files; print(trusted_files._unmapped_root())"]
    found = {}
    for user in ("0", "1000"):
        words = ["unshare", "--user", f"--map-user={user}", *look]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no user namespaces here: {error}")
        found[user] = done.stdout.strip()
    assert found == {"0": "None", "1000": Path("/proc/sys/kernel/overflowuid").read_text().strip()}
    assert trusted_files._unmapped_root() is None


@AS_ROOT
def test_the_group_that_can_write_is_named(file: Path) -> None:
    os.chown(file, 0, 54321)
    file.chmod(0o664)
    refused(file, file, "written by the group 54321")


# --- what is looked at so ---------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(tmp_path / "home")
    make_private_folder(settings.home)
    return settings


def not_used(caught: pytest.ExceptionInfo[ConfigError], path: Path) -> None:
    assert "is not used" in caught.value.message
    assert caught.value.hint == f"chmod go-w {path}"
    assert caught.value.exit_status == 2


def test_the_inventory_also_one_that_is_named(settings: Settings, tmp_path: Path) -> None:
    for path in (settings.inventory_path, tmp_path / "named.toml"):
        path.write_text("[nodes.gpu1]\n")
        assert "gpu1" in load(path, settings).nodes
        path.chmod(0o666)
        with pytest.raises(ConfigError) as caught:
            load(path, settings)
        not_used(caught, path)
        with pytest.raises(ConfigError) as caught:
            remove_node(path, "gpu1")
        not_used(caught, path)


def test_rbees_home(settings: Settings) -> None:
    check_home(settings)
    settings.home.chmod(0o755)
    check_home(settings)
    settings.home.chmod(0o1777)
    with pytest.raises(ConfigError) as caught:
        check_home(settings)
    not_used(caught, settings.home)
    check_home(Settings(settings.home.parent / "none"))


def test_a_folder_that_somebody_else_made_first(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log").chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        make_private_folder(tmp_path / "log")
    not_used(caught, tmp_path / "log")
    with pytest.raises(ConfigError) as caught:
        make_private_folder(tmp_path / "log" / "a" / "b")
    not_used(caught, tmp_path / "log")


def test_the_registry_and_the_keepers_id(settings: Settings, tmp_path: Path) -> None:
    Registry.open(settings.registry_path).close()
    keeper_id(settings)
    for path in (settings.registry_path, settings.home / "keeper-id"):
        path.chmod(0o666)
    with pytest.raises(ConfigError) as caught:
        Registry.open(settings.registry_path)
    not_used(caught, settings.registry_path)
    with pytest.raises(ConfigError) as caught:
        Registry.open_copy(settings.registry_path)
    not_used(caught, settings.registry_path)
    with pytest.raises(ConfigError) as caught:
        keeper_id(settings)
    not_used(caught, settings.home / "keeper-id")


def test_a_registry_behind_a_link_into_a_folder_of_everybody(settings: Settings, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    settings.registry_path.symlink_to(shared / "workers.db")
    with pytest.raises(ConfigError) as caught:
        Registry.open(settings.registry_path)
    not_used(caught, shared)


def test_the_audit_log_is_neither_written_nor_believed(settings: Settings) -> None:
    events: list[Event] = []
    audit.record(settings, "gc", emit=events.append)
    assert (events, len(last_entries(settings, 9, None))) == ([], 1)
    log = settings.log / "audit.log"
    log.chmod(0o666)
    audit.record(settings, "gc", emit=events.append)
    (told,) = events
    assert isinstance(told, Notice)
    assert "gc could not be written to the audit log: " in told.text
    with pytest.raises(ConfigError) as caught:
        verify_keeper(settings)
    not_used(caught, log)
    with pytest.raises(ConfigError) as caught:
        last_entries(settings, 9, None)
    not_used(caught, log)


def test_a_token_that_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hf_secret")
    path.chmod(0o602)
    with pytest.raises(ConfigError) as caught:
        hub_token({"HF_TOKEN_PATH": str(path)})
    not_used(caught, path)


@AS_ROOT
def test_a_token_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hf_secret")
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to 12345"):
        hub_token({"HF_TOKEN_PATH": str(path)})


@AS_ROOT
@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_somebody_else_puts_in_the_tokens_place_is_not_opened(tmp_path: Path, kind: str) -> None:
    """In a folder for all: a FIFO would never answer, and a link may lead to another secret of ours."""
    (tmp_path / "secret").write_text("another secret")
    (tmp_path / "secret").chmod(0o600)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    if kind == "fifo":
        os.mkfifo(shared / "token", 0o600)
    else:
        (shared / "token").symlink_to(tmp_path / "secret")
    os.chown(shared / "token", 12345, 12345, follow_symlinks=False)
    with pytest.raises(ConfigError, match="belongs to 12345"):
        hub_token({"HF_HOME": str(shared)})


def test_a_link_of_somebody_else_to_the_token_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root's tests have it, by what the system says of the link alone."""
    (tmp_path / "secret").write_text("another_secret")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "token").symlink_to(tmp_path / "secret")
    assert hub_token({"HF_HOME": str(tmp_path)}) == "another_secret"
    look = os.lstat

    def somebody_elses(path: str) -> os.stat_result:
        found = look(path)
        return status(found.st_mode, 12345) if path == str(tmp_path / "token") else found

    monkeypatch.setattr(os, "lstat", somebody_elses)
    with pytest.raises(ConfigError, match="belongs to 12345"):
        hub_token({"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize("folder", [".", "llama", "llama/cpu-x"])
async def test_a_wheel_that_others_can_put_into_the_cache(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_CACHE", str(tmp_path / "wheels"))
    cache = WheelCache.of(Settings(tmp_path))
    (cache.root / "llama" / "cpu-x").mkdir(parents=True)
    (cache.root / "llama" / "cpu-x" / "wheel.json").write_text("{}")
    (cache.root / folder).chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        cache.find_llama(Target.here(), "cpu")
    not_used(caught, cache.root / folder)
    if folder == ".":
        with pytest.raises(ConfigError) as caught:
            await cache.base_wheels(Target.here(), lambda _: None)
        not_used(caught, cache.root)


def test_a_payload_that_others_can_write_is_not_run_here(settings: Settings) -> None:
    store = ModelStore.of(settings, build_payload())
    store._payload_file().chmod(0o666)
    with pytest.raises(ConfigError) as caught:
        store._payload_file()
    not_used(caught, settings.cache / "payloads" / build_payload().name)
