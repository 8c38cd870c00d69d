"""Are synthetic volumes with their label maps good to train on? A segmenter on real, on synthetic, on both."""
