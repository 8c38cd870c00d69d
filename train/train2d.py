"""Train a 2D GAN on the slices of a prepared dataset: `accelerate launch train2d.py --data DATASET --out RUN2D`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("train2d")
