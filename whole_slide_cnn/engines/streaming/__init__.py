"""The slide streamed through the network in windows (ESCNN, 2022, Methods; design, section 6)."""
