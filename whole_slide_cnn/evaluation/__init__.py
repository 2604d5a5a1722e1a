"""Scores of slides: metrics with intervals, files, figures. Import the modules; this package imports none of them."""
