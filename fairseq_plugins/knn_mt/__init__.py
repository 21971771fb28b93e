"""Nearest-neighbour translation: a trained model with a look into its training data."""
