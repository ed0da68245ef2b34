"""What the keeper puts on a node so that models can run there: payload, uv, wheels, and the venv made of them."""
