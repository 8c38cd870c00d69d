"""Train AH-Net's 2D network: `accelerate launch segment2d.py --data DATASET --val DATASET --out RUN2D`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("segment2d")
