"""The checksums of files that are not rbee's: `file:` models, of which a request may go on where the same file is.
And the end of files that are: those in whose place others have come, once no worker has them.

Rules
- Such a file can have any size, and belongs to somebody who may write to it at any moment. So it is read in the
  background, one at a time, once it has looked the same for an interval: longer than a file system's clock takes for a
  step, so that whatever is written later shows.
- A checksum stands in the catalog's record beside how the file looked; the catalog tells it for as long as that is so.
- A file that cannot be read is tried again when it looks different.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import anyio

from rbee_remote.hive.models import registration
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.file_digest import FileDigest
from rbee_remote.hive.supervisor import Supervisor
from rbee_remote.protocol import ModelInfo, ProtocolError, RemoteError, decode
from rbee_remote.system.helper import run_helper

_log = logging.getLogger(__name__)

#: Seconds between two looks. FAT has the longest steps: two seconds.
INTERVAL_S = 5.0


class Digests:
    def __init__(self, catalog: Catalog, supervisor: Supervisor) -> None:
        self._catalog = catalog
        self._supervisor = supervisor
        #: By path, how each file looked last, and how those looked that could not be read.
        self._looks: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            while True:
                await self.look()
                await anyio.sleep(INTERVAL_S)
        finally:
            self._discard_replaced()

    async def look(self) -> None:
        """Once at each file: tell who has loaded it how it is, and read those that have been left alone."""
        self._discard_replaced()
        foreign = [info for info in self._catalog.list() if not info.owned]
        before, self._looks = self._looks, {info.path: info.stamp for info in foreign}
        for info in foreign:
            self._supervisor.has_read(info)
            if info.path in before and before[info.path] != info.stamp:
                self._catalog.changed.notify()
        for info in foreign:
            is_settled = before.get(info.path) == info.stamp
            if is_settled and not info.sha256 and self._failed.get(info.path) != info.stamp:
                await self._read(info)

    def _discard_replaced(self) -> None:
        self._catalog.discard_replaced(lambda path: self._supervisor.uses(path) is not None)

    async def _read(self, info: ModelInfo) -> None:
        """What the file says of itself is read as well: it may be another one than was registered."""
        try:
            found = decode(FileDigest, await run_helper("digest", info.path))
            meta = await registration.inspect(Path(info.path))
            now = self._catalog.find(info.model)
            if now.stamp == found.stamp:
                self._catalog.add(replace(now, size=found.size, sha256=found.sha256, meta=meta))
                self._supervisor.has_read(self._catalog.find(info.model))
                _log.info("read %s: SHA-256 %s", info.model, found.sha256)
        except (RemoteError, ProtocolError, OSError) as error:
            _log.warning("there is no SHA-256 of %s: %s", info.model, error)
            self._failed[info.path] = info.stamp
