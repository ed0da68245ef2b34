"""HTTP on a unix socket, for hive and worker alike, and the pipe to one where sshd forbids forwarding.

Both use `socket_server`, `body`, `errors` and `sse`; nothing here knows hive or worker.
"""
