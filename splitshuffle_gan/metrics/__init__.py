"""Scores of synthetic volumes: features, distances, floors, cards."""
