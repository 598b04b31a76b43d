"""EM as a layer of a neural network."""
