"""What AH-Net's transfer is worth: `python evaluate/ahnet.py --train A --test B --out DIR`."""

from splitshuffle_gan.cli import main

if __name__ == "__main__":
    main("ahnet")
