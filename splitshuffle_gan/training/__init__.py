"""The adversarial loop, the same for slices and volumes."""
