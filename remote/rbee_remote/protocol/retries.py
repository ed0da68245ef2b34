"""What a download tries again, on a node and at the keeper for one without a way out. Times are seconds."""

from __future__ import annotations

#: Tries for each source: at most; where no connection was ever made; where what came was wrong.
DOWNLOAD_TRIES = 6
DOWNLOAD_TRIES_WITHOUT_NETWORK = 2
DOWNLOAD_TRIES_WHEN_CORRUPT = 2
#: Before the second try, doubled with each further one, times a random number up to the spread, so that many nodes do
#: not come back together; a server's Retry-After counts where it is longer. Never more than the longest.
DOWNLOAD_FIRST_DELAY_S = 0.5
DOWNLOAD_SPREAD = 1.25
DOWNLOAD_LONGEST_DELAY_S = 30.0
#: One try: the hub's word on a repository, the connection, and without a byte after that.
HUB_API_S = 15.0
DOWNLOAD_CONNECT_S = 10.0
DOWNLOAD_STALL_S = 30.0
