"""What a terminal sends, as names of keys. Pure."""

from __future__ import annotations

import codecs

#: After the escape: CSI and SS3 forms of xterm, VT220, rxvt and the Linux console.
_SEQUENCES = {
    b"[A": "up", b"[B": "down", b"[C": "right", b"[D": "left", b"OA": "up", b"OB": "down", b"OC": "right",
    b"OD": "left", b"[5~": "pageup", b"[6~": "pagedown", b"[H": "home", b"[F": "end", b"OH": "home", b"OF": "end",
    b"[1~": "home", b"[4~": "end", b"[7~": "home", b"[8~": "end",
}  # fmt: skip
_PLAIN = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}
#: No sequence is longer; what goes on beyond it is thrown away.
_LONGEST = 16
#: Seconds after which an escape was a key of its own.
ESCAPE_S = 0.1


class Keys:
    """Keys from bytes, however they are cut."""

    def __init__(self) -> None:
        self._begun = b""  # an escape sequence, with its escape
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_begun(self) -> bool:
        """Whether an escape has come, and nothing that says of what."""
        return bool(self._begun)

    def feed(self, data: bytes) -> list[str]:
        found: list[str] = []
        for number in data:
            byte = bytes((number,))
            if self._begun:
                found += self._continued(byte)
            elif byte == b"\x1b":
                self._begun = byte
            else:
                found += [_PLAIN.get(text, text) for text in self._decoder.decode(byte)]
        return [key for key in found if len(key) > 1 or key.isprintable()]

    def flush(self) -> list[str]:
        """Nothing more came: the escape was meant."""
        begun, self._begun = self._begun, b""
        return ["escape"] if begun == b"\x1b" else []

    def _continued(self, byte: bytes) -> list[str]:
        if byte == b"\x1b":  # another one: the one before was a key
            return ["escape"] if self._begun == b"\x1b" else []
        self._begun += byte
        sequence = self._begun[1:]
        if sequence in (b"[", b"O"):
            return []
        if sequence[:1] not in (b"[", b"O"):  # Alt and a key, which means the key
            self._begun = b""
            return [_PLAIN.get(text, text) for text in self._decoder.decode(sequence)]
        ends = sequence[:1] == b"O" or (0x40 <= byte[0] <= 0x7E)
        if ends or len(sequence) > _LONGEST:
            self._begun = b""
        return [_SEQUENCES[sequence]] if ends and sequence in _SEQUENCES else []
