"""Nearest-neighbor translation: a trained model with a datastore of its training data.

datastore.py    decoder states of a corpus, the tokens that follow, nearest neighbors
gate.py         weights of the neighbors, mixed with the model; learned by gradient
experiment.py   translates test sets with and without neighbors and compares
"""
