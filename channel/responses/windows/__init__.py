"""Context windows: how long a request is, and what of a long history an agent sees."""
