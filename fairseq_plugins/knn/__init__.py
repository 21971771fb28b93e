"""Image classification by k nearest neighbors with SOFT top-k.

data.py       digits, MNIST and CIFAR-10
training.py   settings, networks and training
study.py      trains all methods and compares their accuracies
"""
