"""A model of unified memory on which plans are replayed; nothing is run."""
