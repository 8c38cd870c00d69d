"""Scans and phantoms in, prepared datasets out."""
