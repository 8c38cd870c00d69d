"""Train the network that scores see with: `python extractor.py --out EXTRACTOR --labelled SET ...`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("extractor")
