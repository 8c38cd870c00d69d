"""What is 2D pretraining worth in 3D? ResNet-18s, carried from slices to volumes in several ways, and judged there."""
