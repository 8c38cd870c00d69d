"""Train a 3D GAN: `accelerate launch train3d.py --data DATASET --init CKPT3D --out RUN3D`.

Without arguments: the whole job on built-in brain phantoms.
"""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("train3d")
