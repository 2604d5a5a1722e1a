"""Heat maps: where their cells lie on a slide, their files, pictures and contours, and how well they localise."""
