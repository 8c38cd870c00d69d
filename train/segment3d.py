"""Train AH-Net: `accelerate launch segment3d.py --data DATASET --val DATASET --init RUN2D --out RUN3D`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("segment3d")
