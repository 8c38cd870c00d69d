"""Synthetic pairs to train on: `python evaluate/utility.py --real-train A --synthetic B --real-test C --out DIR`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("utility")
