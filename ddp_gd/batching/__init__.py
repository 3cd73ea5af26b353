"""Which rows make a step, and reading them."""
