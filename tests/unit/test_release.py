"""What a release is checked for before it is built, its checksums and their signature: real git, real ssh-keygen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import release

CHANGELOG = """# Changelog

## Unreleased

## 1.2.0 - 2026-01-31

### Added

- `rbee sing`.

## 1.1.0 - 2025-12-01

- Older.
"""


class Checkout:
    """A repository with what a release looks at; v1.1.0 is tagged, 1.2.0 is the commit after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet")
        self.write(version="1.1.0", inside="1.1.0", changelog=CHANGELOG)
        self.commit()
        self.git("tag", "v1.1.0")
        self.git("tag", "vnext")
        self.write(version="1.2.0", inside="1.2.0", changelog=CHANGELOG)
        self.commit()

    def git(self, *words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=self.root, check=True, capture_output=True)

    def write(self, version: str, inside: str, changelog: str) -> None:
        (self.root / "pyproject.toml").write_text(f'[project]\nname = "rbee"\nversion = "{version}"\n')
        protocol = self.root / release.PROTOCOL
        protocol.parent.mkdir(parents=True, exist_ok=True)
        protocol.write_text(f'PROTOCOL = 1\nVERSION = "{inside}"\n')
        (self.root / "CHANGELOG.md").write_text(changelog)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "x")

    def wrong(self) -> list[str]:
        version = release.project_version(self.root)
        return [*release.of_the_checkout(self.root, version), *release.of_the_changelog(self.root, version)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_commit_after_the_last_release_with_its_section_can_be_one(checkout: Checkout) -> None:
    assert checkout.wrong() == []
    assert release.section(checkout.root, "1.2.0") == ("2026-01-31", "### Added\n\n- `rbee sing`.")
    checkout.git("tag", "v1.2.0")
    assert checkout.wrong() == [], "a tag on this very commit is this release"


def test_what_is_not_committed_is_named(checkout: Checkout) -> None:
    (checkout.root / "left.txt").touch()
    assert checkout.wrong() == ["commit or remove what is not committed: left.txt"]


@pytest.mark.parametrize(
    ("version", "inside", "words"),
    [
        ("1.2.0", "1.1.0", f"pyproject.toml says 1.2.0, {release.PROTOCOL} 1.1.0: set VERSION there"),
        ("1.1.0", "1.1.0", "v1.1.0 is released, from another commit: raise the version in pyproject.toml and"),
        ("1.0.9", "1.0.9", "v1.1.0 is released, and pyproject.toml says 1.0.9: raise the version"),
        ("next", "next", "'next' in pyproject.toml is no version: write it as 1.2.3"),
    ],
)
def test_a_version_that_cannot_be_the_next_is_told_why(
    checkout: Checkout, version: str, inside: str, words: str
) -> None:
    checkout.write(version, inside, CHANGELOG.replace("## 1.2.0", f"## {version}"))
    checkout.commit()
    (line,) = checkout.wrong()
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ("## 1.2.0 - 2026-01-31", "## Later", 'has no section "## 1.2.0 - YYYY-MM-DD": give "Unreleased" that heading'),
        ("- `rbee sing`.", "", "the section 1.2.0 of CHANGELOG.md is empty"),
        (" - 2026-01-31", "", "the section 1.2.0 of CHANGELOG.md has no date"),
        ("Unreleased\n", "Unreleased\n\n- More.\n", 'has entries under "Unreleased", which this commit has'),
    ],
)
def test_what_the_changelog_lacks_is_said(checkout: Checkout, was: str, now: str, words: str) -> None:
    checkout.write("1.2.0", "1.2.0", CHANGELOG.replace(was, now))
    checkout.commit()
    (line,) = checkout.wrong()
    assert words in line


def test_a_clone_without_tags_is_not_taken_for_a_first_release(checkout: Checkout, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    checkout.git("clone", "--quiet", "--depth=1", checkout.root.as_uri(), str(clone))
    assert list(release.of_the_checkout(clone, "1.2.0")) == [
        "this clone lacks earlier commits, and so tags: git fetch --unshallow --tags"
    ]


def test_checksums_and_their_signature_are_what_sha256sum_and_ssh_keygen_accept(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b.whl", "a.tar.gz")]
    for file in files:
        file.write_text(file.name)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    assert release.sums(files, str(key)) == f", signed by {key}"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "signers").write_text(f"rbee {key.with_suffix('.pub').read_text()}")
    words = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "rbee", "-s", "SHA256SUMS.sig"]

    def verify(namespace: str) -> int:
        with (tmp_path / "SHA256SUMS").open() as text:
            return subprocess.run(
                [*words, "-n", namespace], cwd=tmp_path, stdin=text, capture_output=True, check=False
            ).returncode

    assert verify(release.NAMESPACE) == 0
    assert verify("git") != 0
    (tmp_path / "SHA256SUMS").write_text("other")
    assert verify(release.NAMESPACE) != 0


def test_without_a_key_it_says_that_the_checksums_are_unsigned(tmp_path: Path) -> None:
    file = tmp_path / "a.whl"
    file.touch()
    assert release.sums([file], "") == ". SHA256SUMS is unsigned: RELEASE_KEY names an SSH key to sign with"


def test_a_key_that_cannot_sign_ends_the_release(tmp_path: Path) -> None:
    file = tmp_path / "a.whl"
    file.touch()
    with pytest.raises(SystemExit, match=r"no-key cannot sign: .*No such file"):
        release.sums([file], str(tmp_path / "no-key"))
