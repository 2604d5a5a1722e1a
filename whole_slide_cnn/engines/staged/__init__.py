"""The slide stage by stage in tiles, with the maps between stages kept."""
