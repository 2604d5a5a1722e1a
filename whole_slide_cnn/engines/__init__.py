"""Engines: different ways to compute the same loss and gradients. :mod:`.table` lists them."""
