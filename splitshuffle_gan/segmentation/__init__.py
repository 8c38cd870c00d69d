"""Segmentation in the manner of AH-Net (arXiv 1711.08580): a 2D network on slices, carried over to volumes."""
