"""Synthetic slides, and the photographs and textures they are made of."""
