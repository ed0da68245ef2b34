"""Gives the link's two ends time, in each Python process that has this folder on its path.

The link's limits are short on purpose: whatever is wrong with it, the direct way begins soon. On a machine that does
other things as well, that is the right way for a command; and a test of what goes over the link would have nothing to
look at.
"""

import sys

from rbee.link import client, messages
from tests.patience import PATIENCE_S

client.OFFER_S = client.BEGIN_S = client.SILENCE_S = PATIENCE_S
client.ask.__defaults__ = (PATIENCE_S,)
messages.Messages.send.__defaults__ = (PATIENCE_S,)

if not {"serve", "rbee.cli.holder"}.isdisjoint(sys.orig_argv):
    from rbee.link import server, session
    from rbee.node import pool

    server.FIRST_LINE_S = server.REPLACE_S = session.GO_S = pool.ANSWER_WITHIN_S = PATIENCE_S
