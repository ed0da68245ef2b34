"""Who may ask the gateway, and where it listens: keys and their limits, addresses, TLS."""
