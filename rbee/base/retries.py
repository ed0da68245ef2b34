"""What the keeper tries again: how often, after how long, and how long one try may take. Times are seconds.

docs/reliability.md, "Retries", is the table of it, with the worst cases; what a node tries again by itself stands in
`rbee_remote.protocol.retries`. Each section names its owner.
"""

from __future__ import annotations


def doubled(first_s: float, longest_s: float, failures: int) -> float:
    """The pause after so many failures in a row, of which there is one at least."""
    return min(first_s * 2.0 ** min(failures - 1, 16), longest_s)  # no float holds what some thousand doublings give


# --- transport/ssh: one hop --------------------------------------------------------------------------------------

#: Before the second and the third try.
SSH_DELAYS_S = (0.2, 0.4)
#: The same where the server hangs up on newcomers, each times a random number between these two.
SSH_BUSY_DELAYS_S = (0.2, 0.4, 0.8, 1.6, 3.2)
SSH_BUSY_SPREAD = (0.5, 1.5)
#: Until the server asks for a key; then agent, token and server have this long for each key.
SSH_CONNECT_S = 10.0
SSH_AUTHENTICATE_S = 30.0

# --- transport/local: a socket whose queue is full ----------------------------------------------------------------

LOCAL_QUEUE_S = 10.0
LOCAL_QUEUE_PAUSE_S = 0.02

# --- transport/script, transport/upload ---------------------------------------------------------------------------

#: For a login shell to run what it is given: rc files on a slow home need some, none needs more.
SHELL_START_S = 20.0
#: A part that turns out corrupt is thrown away, and the file is sent once more.
UPLOAD_TRIES = 2
#: For a node to say what it has, for it to take one piece over the slowest of lines, and to check what it got: so long
#: at least, and a second for each so many bytes.
UPLOAD_READY_S = 60.0
UPLOAD_PIECE_S = 300.0
UPLOAD_CHECK_S = 120.0
UPLOAD_CHECK_RATE = 10 * 2**20

# --- node/probe, node/socket_http, node/hive_client: one question each ----------------------------------------------

PROBE_S = 60.0
#: Opening a stream to a socket takes a round trip, or the start of a small process.
STREAM_OPEN_S = 10.0
#: The same where hundreds may be opened at once, each with the start of a process. That the connection is good, the one
#: who holds it knows sooner.
CROWDED_OPEN_S = 60.0
#: Hives and workers send a comment line every few seconds while a stream has nothing to say.
STREAM_SILENCE_S = 30.0
#: The same where nothing else is asked of them, and much depends on hearing soon that they hang: three comments missed.
NEWS_SILENCE_S = 10.0
#: For the whole answer to a request.
REQUEST_S = 30.0
#: A hive decides within milliseconds; one that swaps may take a while.
HEALTH_TIMEOUT_S = 10.0
WORKER_HEALTH_S = 5.0
#: A stop waits for running requests, and then for each step of the escalation, which comes on top.
STOP_TIMEOUT_S = 180.0
#: llama.cpp reads the model's vocabulary and lays out a graph for each context size; a hive lets it have a minute, and
#: goes on by a formula.
NEEDS_TIMEOUT_S = 90.0
#: Checking a SHA-256 takes seconds for each gigabyte.
REGISTER_S = 600.0
#: … and so long more for each of a model that was sent: 10 s are a disk of 100 MB/s.
REGISTER_S_PER_GB = 10.0
#: A hive gives a load up after five minutes without progress; one that does not, does not work.
STALLED_LOAD_S = 600.0

# --- setup ----------------------------------------------------------------------------------------------------------

#: One script of the bootstrap.
INSTALL_TIMEOUT_S = 600.0
#: uv, for fetching a Python; its script has ten more.
PYTHON_TIMEOUT_S = 60
#: CUDA's libraries, which a node fetches itself where it can: for this machine to learn where they are; for the first
#: server to answer the node, since it has no way out as a rule where none does; for all of it.
LIBRARIES_FIND_S = 10.0
LIBRARIES_ANSWER_S = 3.0
LIBRARIES_WHOLE_S = 1800.0
#: Without a byte, or with less than 1 MiB, until they are uploaded; tries in a row that break and bring as little.
LIBRARIES_STALL_S = 20.0
LIBRARIES_TRIES = 3
LIBRARIES_PAUSE_S = 0.5
#: A hive starts in a fraction of a second; on a node that swaps or has a slow home it may take a while.
HIVE_START_S = 45.0

# --- infer: a node that is lost, a worker that is gone or busy, a connection that breaks ------------------------------

#: How often phases 2 to 7 begin again after the connection broke: a large upload over a bad line goes on that often.
RECONNECTS = 5
#: For opening a connection in place of one that broke there, all tries together.
REOPEN_TIMEOUT_S = 20.0
#: Workers of one node that may die of one request, or be gone with their hive, before they answer: another one follows
#: each but the last.
WORKERS_TRIED = 2
#: Before a worker is asked again whose slots and queue are full.
BUSY_DELAYS_S = (1.0, 2.0, 4.0)
#: Without a byte of the answer, after which a connection counts as dead; a worker with nothing to say sends a comment
#: every three.
ANSWER_SILENCE_S = 10.0
#: Without the worker, until the answer is given up.
OUTAGE_S = 30.0
#: For opening one connection meanwhile.
OUTAGE_REOPEN_S = 30.0
#: Before the second try, doubled with each further one up to the longest.
OUTAGE_PAUSE_S = 0.1
OUTAGE_LONGEST_PAUSE_S = 2.0
#: For a hive to say what became of a silent worker: one that is there answers within two round trips.
ASK_TIMEOUT_S = 4.0
#: For a hive to notice that a worker died, which is milliseconds; and before it is asked again.
NOTICED_S = 3.0
NOTICED_PAUSE_S = 0.05
#: How long Ctrl-C waits for the node to say that it stopped; and where the connection is lost: another may be had at
#: once, or not at all.
CANCEL_TIMEOUT_S = 5.0
LOST_TIMEOUT_S = 2.0

# --- gateway: a request whose worker, or the way to it, failed --------------------------------------------------------

#: Workers that fail a request, without a token of the answer in between, and in all: it may be the request that they
#: die of, and it is not to go through the whole fleet.
FAILOVER_IN_A_ROW = 4
FAILOVER_TRIES = 8
#: A connection that is lost says nothing against the request, and one that flaps is lost four times within seconds,
#: each time before a worker has got over what it is told of the answer: so that such an answer is given up only when
#: as many tries in a row have also taken so long, without a token.
FAILOVER_STILL_S = 30.0
#: For the connection of an answer to be made again, before another worker goes on with it; then for that worker, which
#: may have to load the model, and for the first one where there is no other.
FAILOVER_BACK_S = 5.0
FAILOVER_RESUME_S = 120.0
#: For a worker that is asked once more to begin.
FAILOVER_HEAD_S = 10.0

# --- batch: a line that got no answer -------------------------------------------------------------------------------

#: Before a line is asked again, doubled with each further time up to the longest.
BATCH_PAUSE_S, BATCH_LONGEST_PAUSE_S = 1.0, 30.0
#: While nobody answers and all nodes say what does not pass by itself, such as too little memory, until the run ends.
BATCH_FATAL_S = 20.0

# --- registry ---------------------------------------------------------------------------------------------------------

#: For another rbee that writes to workers.db: each write takes a millisecond, so that only a process that hangs, or is
#: stopped, keeps the lock for as long.
BUSY_TIMEOUT_S = 10.0

# --- gateway/node_link: a node that is held, for as long as the gateway runs -----------------------------------------

#: For connecting to a node, all tries together.
HOLD_CONNECT_S = 45.0
#: After a connection was lost, until its node counts as down: connecting again takes a second or two, and who wants the
#: node waits for that, but not for one that does not come back. A try that fails ends it sooner.
HOLD_AGAIN_S = 10.0
#: Without a sign of life of a node, of its hive or of one of its workers, after which it counts as lost; hives and
#: workers send a comment every three.
HOLD_SILENCE_S = 9.0
#: Before a node is connected to again, or a hive or worker asked, doubled with each further time up to the longest, and
#: times a random number between these two: nodes that were lost at once do not come back at once.
HOLD_PAUSE_S = 0.5
HOLD_LONGEST_PAUSE_S = 15.0
HOLD_SPREAD = (0.5, 1.5)
#: The same where a node refuses, or cannot be set up, which passes when somebody mends it: servers punish many tries.
HOLD_REFUSED_PAUSE_S = 60.0
#: Before the inventory's file is looked at again.
INVENTORY_LOOK_S = 1.0

# --- gateway: a load that failed on a node ---------------------------------------------------------------------------

#: Until the node is asked again, by a request that wants the model, doubled with each failure in a row: a file that is
#: broken stays so, and a download that failed costs minutes.
LOAD_PAUSE_S, LOAD_LONGEST_PAUSE_S = 10.0, 300.0
#: The same where it was busy, the way to it broke, or its worker was killed: that passes sooner.
BUSY_NODE_PAUSE_S, BUSY_NODE_LONGEST_PAUSE_S = 1.0, 8.0
#: A request waits for a node that is busy for so long; so it does where the way broke or the worker was killed, until
#: that has happened so often in a row: a kill for want of memory looks like any other.
BUSY_NODE_S = 120.0
BROKEN_LOADS = 3
