"""Is the ruler straight? `python validate_extractor.py --real DATASET --out DIR`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("validate-extractor")
