"""The only modules that import TensorFlow: from its graphs, to its graphs, and checks of what became of them."""
