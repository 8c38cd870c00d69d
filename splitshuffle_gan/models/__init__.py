"""The two networks, each other's mirror, at rank 2 and 3."""
