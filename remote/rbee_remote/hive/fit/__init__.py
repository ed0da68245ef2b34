"""Whether a model fits: what the node has, what the model needs, and what is settled where nobody said."""
