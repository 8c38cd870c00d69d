"""Ways of training compared at equal compute, each on several seeds, by volumes that none was trained on."""
