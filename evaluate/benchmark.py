"""Measure parameters, speed and memory of the networks on this machine: `python benchmark.py --out benchmark.json`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("benchmark")
