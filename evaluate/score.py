"""Score synthetic volumes: `accelerate launch score.py --generated DIR --real DATASET --out card.json`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("score")
