"""What the parts of the gateway are to each other (`interfaces`), and what they know of nodes and workers (`views`)."""
