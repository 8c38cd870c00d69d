"""What is 2D pretraining worth in 3D? `evaluate/probe.py PLAN.yaml --data FOLDER --out FOLDER`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("probe")
