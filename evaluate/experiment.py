"""Compare ways of training at equal compute: `evaluate/experiment.py PLAN.yaml --data DATASET --out FOLDER`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("experiment")
