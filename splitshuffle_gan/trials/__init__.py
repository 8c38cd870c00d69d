"""AH-Net trained in several ways and tested on the same volumes: what is worth how much Dice?"""
