"""Networks that scores see with: volume or slice to a feature vector."""
