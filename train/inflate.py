"""Make a 3D GAN of a 2D one: `python inflate.py RUN2D --out CKPT3D`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("inflate")
