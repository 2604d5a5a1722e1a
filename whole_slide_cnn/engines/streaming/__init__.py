"""The slide streamed through the network in windows (ESCNN, 2022, Methods; architecture, streaming)."""
