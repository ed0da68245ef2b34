"""Models of other programs: found where those keep them, and nothing that leads elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from rbee.models.ref import parse_ref
from rbee_remote.hive.models import elsewhere as module
from rbee_remote.hive.models.elsewhere import found_elsewhere
from rbee_remote.protocol import Source
from rbee_remote.protocol.elsewhere import FoundElsewhere, match

CONTENT = b"GGUF and the rest"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def ollama(root: Path, name: str, *, digest: str = f"sha256:{SHA256}", kind: str = module._MODEL_LAYER) -> None:
    layers = [{"mediaType": kind, "digest": digest, "size": 1}, {"mediaType": "x.license", "digest": "sha256:1"}]
    put(root / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}).encode())


def names(home: Path, env: dict[str, str] | None = None) -> dict[str, FoundElsewhere]:
    return {each.name: each for each in found_elsewhere(home, env or {})}


def test_what_ollama_pulled_is_found_by_its_manifest(tmp_path: Path) -> None:
    root = tmp_path / ".ollama/models"
    blob = put(root / f"blobs/sha256-{SHA256}")
    ollama(root, "registry.ollama.ai/library/llama3.2/3b")
    found = names(tmp_path)
    assert found == {
        "ollama:llama3.2:3b": FoundElsewhere("ollama:llama3.2:3b", str(blob), len(CONTENT), "Ollama", SHA256)
    }


def test_another_folder_of_ollama_and_other_namespaces_are_found(tmp_path: Path) -> None:
    put(tmp_path / f"m/blobs/sha256-{SHA256}")
    for name in ("registry.ollama.ai/somebody/coder/7b", "hf.co/Owner/Repo-GGUF/Q4_K_M"):
        ollama(tmp_path / "m", name)
    found = found_elsewhere(tmp_path / "home", {"OLLAMA_MODELS": str(tmp_path / "m")})
    assert all(parse_ref(each.name).canonical == each.name for each in found)
    assert sorted(each.name for each in found) == ["ollama:hf.co/owner/repo-gguf:q4_k_m", "ollama:somebody/coder:7b"]


def test_a_file_with_several_tags_is_found_by_each(tmp_path: Path) -> None:
    root = tmp_path / ".ollama/models"
    put(root / f"blobs/sha256-{SHA256}")
    for tag in ("latest", "3b", "3b-instruct-q4_K_M"):
        ollama(root, f"registry.ollama.ai/library/llama3.2/{tag}")
    found = found_elsewhere(tmp_path, {})
    for tag in ("latest", "3b"):
        ref = f"ollama:llama3.2:{tag}"
        assert match(found, ref, (Source("ollama", requirement=ref),), "") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"layers": 1}',
        b'{"layers": [{"mediaType": 1}]}',
        b"[" * 100_000,
        b"x" * (module.MOST_OF_MANIFEST + 1),
    ],
)
def test_a_manifest_that_is_none_is_left_out(tmp_path: Path, content: bytes) -> None:
    root = tmp_path / ".ollama/models"
    put(root / f"blobs/sha256-{SHA256}")
    put(root / "manifests/registry.ollama.ai/library/a/b", content)
    assert not names(tmp_path)


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:" + "a" * 64, "md5:1", SHA256])
def test_a_manifest_leads_to_blobs_alone(tmp_path: Path, digest: str) -> None:
    root = tmp_path / ".ollama/models"
    put(root / f"blobs/sha256-{SHA256}")
    ollama(root, "registry.ollama.ai/library/a/b", digest=digest)
    assert not names(tmp_path)


def test_what_lm_studio_has_is_found_by_repository_and_file(tmp_path: Path) -> None:
    root = tmp_path / ".lmstudio/models/Owner/Repo-GGUF"
    for name in ("m-Q4_K_M.gguf", "mmproj-F16.gguf", "m-Q8_0.gguf.part", "s-Q8_0-00001-of-00002.gguf"):
        put(root / name)
    put(tmp_path / ".cache/lm-studio/models/Owner/Other/o-Q8_0-00001-of-00002.gguf")
    put(tmp_path / ".cache/lm-studio/models/Owner/Other/o-Q8_0-00002-of-00002.gguf")
    found = names(tmp_path)
    assert sorted(found) == ["hf:Owner/Other:o-Q8_0-00001-of-00002.gguf", "hf:Owner/Repo-GGUF:m-Q4_K_M.gguf"]
    assert found["hf:Owner/Other:o-Q8_0-00001-of-00002.gguf"].size == 2 * len(CONTENT)


def test_the_caches_of_the_hub_and_of_llama_cpp_are_found(tmp_path: Path) -> None:
    repo = tmp_path / ".cache/huggingface/hub/models--Owner--Repo-GGUF"
    blob = put(repo / f"blobs/{SHA256}")
    (repo / "snapshots/0123").mkdir(parents=True)
    (repo / "snapshots/0123/m-Q8_0.gguf").symlink_to(f"../../blobs/{SHA256}")
    put(repo / f"blobs/{'b' * 64}.incomplete")
    llama = put(tmp_path / ".cache/llama.cpp/Owner_Repo_m-Q8_0.gguf")
    put(tmp_path / ".cache/llama.cpp/x.gguf.downloadInProgress")
    found = names(tmp_path)
    assert sorted(found) == [f"file:{llama}", "hf:Owner/Repo-GGUF:m-Q8_0.gguf"]
    hub = found["hf:Owner/Repo-GGUF:m-Q8_0.gguf"]
    assert (hub.path, hub.sha256) == (str(blob), SHA256)


def test_links_that_lead_out_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.gguf")
    root = tmp_path / ".lmstudio/models/o/r"
    root.mkdir(parents=True)
    (root / "out-Q8_0.gguf").symlink_to(secret)
    (root / "loop-Q8_0.gguf").symlink_to("loop-Q8_0.gguf")
    (root / "folder-Q8_0.gguf").mkdir()
    os.mkfifo(root / "pipe-Q8_0.gguf")
    put(root / "empty-Q8_0.gguf", b"")
    put(root / "line\nbreak-Q8_0.gguf")
    assert not names(tmp_path)


def test_a_huge_listing_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 5)  # two of them folders
    for number in range(10):
        put(tmp_path / f".lmstudio/models/o/r/m{number}-Q8_0.gguf")
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("others", ["x{}.bin", "d{}/x.bin"])
def test_a_huge_listing_is_bounded_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 50)
    seen = 0
    scandir = os.scandir

    class Counted:
        def __init__(self, path: Path) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def __iter__(self) -> Counted:
            return self

        def __next__(self) -> os.DirEntry[str]:
            nonlocal seen
            seen += 1
            return next(self._entries)

    root = tmp_path / ".cache/huggingface/hub/models--o--r/snapshots/0"
    for number in range(300):
        put(root / others.format(number))
    monkeypatch.setattr(os, "scandir", Counted)
    assert not names(tmp_path)
    assert 0 < seen <= 60


def test_of_several_commits_the_file_that_came_last_is_found(tmp_path: Path) -> None:
    repo = tmp_path / ".cache/huggingface/hub/models--Owner--Repo-GGUF"
    for number, (commit, when) in enumerate([("a", 2), ("b", 3), ("c", 1)]):
        blob = put(repo / f"blobs/{str(number) * 64}")
        os.utime(blob, (when, when))
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "m-Q8_0.gguf").symlink_to(blob)
    (found,) = found_elsewhere(tmp_path, {})
    assert found.sha256 == "1" * 64


def test_what_else_the_hubs_cache_has_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 20)
    hub = tmp_path / ".cache/huggingface/hub"
    for number in range(30):
        put(hub / f"datasets--o--d/snapshots/0/{number}.gguf")
        put(hub / f"models--o--r/blobs/{number}")
    put(hub / "models--o--r/snapshots/0/BF16/m-BF16.gguf")
    assert list(names(tmp_path)) == ["hf:o/r:BF16/m-BF16.gguf"]


FOUND = [
    FoundElsewhere("ollama:llama3.2:3b", "/o", 1, "Ollama", "a" * 64),
    FoundElsewhere("", "/l", 1, "LM Studio", "", "Owner/Repo-GGUF", "m-Q4_K_M.gguf"),
    FoundElsewhere("", "/h", 1, "the Hugging Face cache", "b" * 64, "Owner/Repo-GGUF", "m-Q8_0.gguf"),
]


@pytest.mark.parametrize(
    ("model", "source", "sha256", "expected"),
    [
        ("ollama:llama3.2:3b", Source("ollama", requirement="llama3.2:3b"), "", "/o"),
        ("ollama:other:1b", Source("ollama", requirement="other:1b"), "", None),
        ("llama3.2:3b", Source("hf", repo="x/y", file="z.gguf"), "a" * 64, "/o"),
        ("m", Source("hf", repo="owner/repo-gguf", file="q4-k-m"), "", "/l"),
        ("m", Source("hf", repo="Owner/Repo-GGUF", file="m-Q8_0.gguf"), "", "/h"),
        ("m", Source("hf", repo="Owner/Repo-GGUF", file="m-Q8_0.gguf"), "c" * 64, None),
        ("m", Source("hf", repo="Owner/Repo-GGUF", file="m-Q8_0.gguf", revision="v1"), "", None),
        ("m", Source("hf", repo="Owner/Repo-GGUF"), "", None),
        ("m", Source("https", url="https://h/m.gguf"), "", None),
    ],
)
def test_a_ref_is_matched_by_name_checksum_or_repository(
    model: str, source: Source, sha256: str, expected: str | None
) -> None:
    found = match(FOUND, model, (source,), sha256)
    assert (found.path if found else None) == expected
