"""From 2D to 3D: weights of a slice network become weights of a volume network."""
