"""Image classification by k nearest neighbours: data, networks, training, study."""
