"""HTTP on a unix socket, for hive and worker alike, and the pipe to one where sshd forbids forwarding."""
