"""The nodes that the gateway holds: their connections, news and workers. Begin with `fleet`."""
