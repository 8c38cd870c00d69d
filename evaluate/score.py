"""Score synthetic volumes: `accelerate launch evaluate/score.py --generated DIR --real DATASET --out CARD`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("score")
