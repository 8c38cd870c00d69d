"""Factors of anatomy, such as the size of the heart: estimated on real and on generated volumes, and compared."""
