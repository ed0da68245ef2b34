"""The fenced blocks of code of an answer, as CommonMark has them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^( {0,3}|\s*(?:[-*+]|\d{1,9}[.)])\s+|\s+)(`{3,}|~{3,})([^\n]*)$")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """language: the first word after the fence, "" for none. text: without the fences, ends with a newline."""

    language: str
    text: str


def code_blocks(answer: str) -> list[CodeBlock]:
    """Those of an answer, the last one also where its end did not come."""
    found: list[CodeBlock] = []
    fence = language = ""
    indent = 0
    lines: list[str] = []
    for line in answer.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        if not fence:
            match = _FENCE.match(line)
            if match and not (match[2][0] == "`" and "`" in match[3]):
                fence, language, lines = match[2], (match[3].split() or [""])[0], []
                indent = len(match[1])
        elif re.fullmatch(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}\s*", line):
            found.append(_block(language, lines))
            fence = ""
        else:
            lines.append(line[min(indent, len(line) - len(line.lstrip())) :])
    if fence:
        found.append(_block(language, lines))
    return found


def fenced(text: str, language: str = "") -> str:
    """`text` between fences longer than any that it has."""
    longest = max((len(run) for run in re.findall(r"^\s*(`{3,})", text, re.MULTILINE)), default=2)
    fence = "`" * (longest + 1)
    ends = "" if text.endswith("\n") or not text else "\n"
    return f"{fence}{language}\n{text}{ends}{fence}"


def _block(language: str, lines: list[str]) -> CodeBlock:
    return CodeBlock(language, "".join(f"{line}\n" for line in lines))
