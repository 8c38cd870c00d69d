"""Draw synthetic volumes as NIfTI: `accelerate launch sample.py CKPT --seeds 0-15 --out DIR`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("sample")
