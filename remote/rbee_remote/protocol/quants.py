"""Which model of a repository a ref means: by a file's name, by a quantisation, or by none. Pure; of names and sizes.

Rules
- Case and separators do not matter: q4-k-m, Q4_K_M and Q4.K.M are one quantisation.
- A name that fits one file exactly goes first; of files in several folders the least deep.
- What is no model by itself is never chosen: projectors, importance matrices, draft models, adapters. Who gives the
  whole name of such a file gets it, and whatever reads it says what it is.
- Where two models fit equally well, nothing is guessed.

The names are those of llama.cpp's `llama_ftype`, with the additions that people who publish quantisations make: UD-
(Unsloth's dynamic ones), _L, _XL and _H, imat.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from rbee_remote.protocol.load_options import LORA
from rbee_remote.protocol.splits import FileGroup, first_part, grouped, part_of

#: What is taken where nobody said: first the usual balance of size and quality, as llama.cpp and the hub have it.
PREFERRED = (
    "Q4_K_M",
    "UD-Q4_K_XL",
    "Q4_K_XL",
    "MXFP4",
    "MXFP4_MOE",
    "Q4_K_S",
    "IQ4_XS",
    "IQ4_NL",
    "Q5_K_M",
    "Q4_0",
    "Q4_1",
    "Q5_K_S",
    "Q6_K",
    "Q8_0",
    "BF16",
    "F16",
    "F32",
)
#: How many files an error lists.
MOST_LISTED = 20

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])(?:UD[-_.])?(?:"
    r"I?Q[1-9](?:[-_.](?:K(?:[-_.](?:XXS|XS|S|M|L|XL|XXL|H|P))?|[01](?:[-_.][48][-_.][48])?|NL|XXS|XS|S|M|L|XL))?"
    r"|TQ[12][-_.]0|MXFP4(?:[-_.]MOE)?|NVFP4|BF16|FP?16|FP?32)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_FULL = re.compile(r"bf16|fp?16|fp?32")
#: Words of names that say that a file goes with a model, and is none.
_NO_MODEL = frozenset({"mmproj", "imatrix", LORA, "adapter", "adapters", "eagle", "eagle2", "eagle3", "dflash"})
#: The same, unless the repository's own name has the word: then it is what the repository is for.
_NO_MODEL_BESIDE_ONE = frozenset({"draft", "drafter", "mtp"})
_NO_MODEL_ANYWHERE = ("mmproj",)


class NotChosen(Exception):
    """Nothing was chosen. hint: what to do. candidates: what there is to choose from, the nearest first."""

    def __init__(self, message: str, hint: str, candidates: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.candidates = tuple(candidates)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A whole model of a repository. quant: as its name has it, "" where that has none. size: bytes of all its parts,
    None where a part's is not known."""

    group: FileGroup
    quant: str
    size: int | None

    @property
    def name(self) -> str:
        return self.group.name

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name} ({gigabytes(self.size)})"


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """name: of the file, or of the first part. why: in words, "" where it was asked for by name."""

    name: str
    why: str = ""


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def quant_of(name: str) -> str:
    """The quantisation that a file's name tells, or else its folder's; "" for none: `UD-Q4_K_XL`, `BF16`."""
    part = part_of(name)
    stem = part.stem if part else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    for text in reversed(stem.split("/")):
        found = [match[0] for match in _QUANT.finditer(text)]
        if found:
            return _spelt(found[-1])
    return ""


def key(text: str) -> str:
    """What is left of a name where case and separators do not matter."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    return plain.replace("fp", "f") if _FULL.fullmatch(plain) else plain


def is_model(name: str, repo: str = "") -> bool:
    """Whether a file may be a model that answers by itself, by its name."""
    lower = name.lower()
    if not lower.endswith(".gguf") or any(word in lower for word in _NO_MODEL_ANYWHERE):
        return False
    found = set(_words(lower.rpartition("/")[2]))
    if "imatrix" in found and quant_of(name) and not _FULL.fullmatch(key(quant_of(name))):
        found.discard("imatrix")  # a model that was made with one
    return not found & _NO_MODEL and not (found & _NO_MODEL_BESIDE_ONE) - set(_words(repo.lower()))


def models(sizes: Mapping[str, int | None], repo: str = "") -> list[Candidate]:
    """The whole models among a repository's files, the least deep first."""
    found = [
        Candidate(group, quant_of(group.name), _size(group, sizes))
        for group in grouped(sizes)
        if group.is_whole and is_model(group.name, repo)
    ]
    return sorted(found, key=lambda each: (each.name.count("/"), len(each.name), each.name))


def choose(sizes: Mapping[str, int | None], wanted: str, repo: str, *, room: int | None = None) -> Choice:
    """What `wanted` means: a file's name, a quantisation, words of the name, or "" for what suits best.

    sizes: of the repository's files, in bytes. room: bytes of a model that has space where it is to run, None where
    that is not known. Raises NotChosen.
    """
    groups = {group.name: group for group in grouped(sizes)}
    there = models(sizes, repo)
    if there and not wanted:
        return _best(there, repo, room)
    if named := _named(groups, wanted):
        return Choice(_whole(named, repo).name)
    if fitting := _fitting(there, wanted):
        return Choice(_only(fitting, wanted, repo).name)
    for group in groups.values():
        if not group.is_whole and is_model(group.name, repo) and _is_quant(quant_of(group.name), wanted):
            _whole(group, repo)
    raise NotChosen(
        f"{repo} has no file {wanted}" if wanted and there else f"{repo} has no GGUF file that is a model",
        "choose one of the files" if there else "repositories with GGUF files mostly have GGUF in their name",
        _nearest(there, wanted),
    )


def _named(groups: Mapping[str, FileGroup], wanted: str) -> FileGroup | None:
    """Those whose name is `wanted`: as it stands, else in another case, with no ending, or without its folder."""
    if first_part(wanted) in groups:
        return groups[first_part(wanted)]
    asked = first_part(wanted if wanted.lower().endswith(".gguf") else f"{wanted}.gguf").lower()
    found = [
        group
        for name, group in groups.items()
        if name.lower().endswith(".gguf") and asked in (name.lower(), name.lower().rpartition("/")[2])
    ]
    return min(found, key=lambda group: group.name.count("/"), default=None)


def _whole(group: FileGroup, repo: str) -> FileGroup:
    if group.is_whole:
        return group
    raise NotChosen(
        f"{repo} has only {len(group.files) - len(group.missing)} of the {len(group.files)} parts of {group.name}",
        f"{group.missing[0]} is not there; choose another file, or another revision",
    )


def _fitting(there: list[Candidate], wanted: str) -> list[Candidate]:
    """Of that quantisation exactly; else of it with something before or behind; else with all words of it."""
    ways: tuple[Callable[[Candidate], bool], ...] = (
        lambda each: _is_quant(each.quant, wanted),
        lambda each: _is_quant(each.quant.removeprefix("UD-"), wanted),
        lambda each: _is_quant(each.quant, f"{wanted}_MOE") or _is_quant(f"{each.quant}_MOE", wanted),
        lambda each: _says(each, wanted),
    )
    for fits in ways:
        if found := [each for each in there if fits(each)]:
            return found
    return []


def _is_quant(quant: str, wanted: str) -> bool:
    return bool(quant) and key(quant) == key(wanted)


def _says(each: Candidate, wanted: str) -> bool:
    """Whether the name has the words of `wanted` beside each other, and means no other quantisation by them."""
    asked, words = _words(wanted.lower()), _words(each.name.lower())
    if not asked or key(wanted) == key(quant_of(f"{wanted}.gguf")):
        return False
    if quant_of(f"{wanted}.gguf") and not _is_quant(each.quant, quant_of(f"{wanted}.gguf")):
        return False
    return any(words[at : at + len(asked)] == asked for at in range(len(words)))


def _only(fitting: list[Candidate], wanted: str, repo: str) -> Candidate:
    """The one that is meant. Raises NotChosen where that could be several."""
    depth = fitting[0].name.count("/")
    level = [each for each in fitting if each.name.count("/") == depth]
    plain = [each for each in level if _is_last(each)]
    best = plain or level
    if len(best) > 1:
        raise NotChosen(
            f"{repo} has {len(best)} models that {wanted} could mean",
            "give the name of the file",
            [str(each) for each in best[:MOST_LISTED]],
        )
    return best[0]


def _is_last(each: Candidate) -> bool:
    """Whether the name ends with the quantisation, with nothing behind such as -imat or -v2."""
    part = part_of(each.name)
    stem = part.stem if part else each.name[: -len(".gguf")]
    return bool(each.quant) and key(stem).endswith(key(each.quant))


def _best(there: list[Candidate], repo: str, room: int | None) -> Choice:
    """Where nobody said which. Raises NotChosen."""
    if len(there) == 1:
        return Choice(there[0].name, f"the only model of {repo}")
    preferred = [each for quant in PREFERRED for each in there if _is_quant(each.quant, quant)]
    if not preferred:
        listed = [str(each) for each in there[:MOST_LISTED]]
        raise NotChosen(f"{repo} has no GGUF file that is an obvious choice", "choose one of the files", listed)
    first = preferred[0]
    usual = _only([each for each in there if each.quant == first.quant], first.quant, repo)
    if room is None or usual.size is None or usual.size <= room:
        return Choice(usual.name, f"{usual.quant} is the usual balance of size and quality")
    sized = [each for each in there if each.size and each.quant]
    fitting = [each for each in sized if (each.size or 0) <= room]
    if fitting:
        best = max(fitting, key=lambda each: (each.size or 0, each.name))
        return Choice(best.name, f"{best.quant} is the largest of {len(there)} that has space in {gigabytes(room)}")
    least = min(sized, key=lambda each: (each.size or 0, each.name))
    return Choice(least.name, f"{least.quant} is the smallest of {len(there)}, and none has space in {gigabytes(room)}")


def _nearest(there: list[Candidate], wanted: str) -> list[str]:
    """With their sizes: first those whose quantisation has as many bits, by how much of the name is the same."""
    asked = key(wanted)

    def distance(each: Candidate) -> tuple[int, int, int]:
        quant = key(each.quant)
        same = sum(1 for one, other in zip(quant, asked, strict=False) if one == other)
        return abs(_bits(quant) - _bits(asked)), -same, each.size or 0

    return [str(each) for each in sorted(there, key=distance)[:MOST_LISTED]]


def _bits(quant: str) -> int:
    found = re.search(r"[0-9]+", quant)
    return int(found[0]) if found else 99


def _size(group: FileGroup, sizes: Mapping[str, int | None]) -> int | None:
    found = [sizes[file] for file in group.files]
    return sum(size or 0 for size in found) if all(size is not None for size in found) else None


def _spelt(quant: str) -> str:
    """As llama.cpp writes it: capitals, underscores, and UD with a dash."""
    text = re.sub(r"[-.]", "_", quant.upper())
    return re.sub(r"^UD_", "UD-", text)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]
