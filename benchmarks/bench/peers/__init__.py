"""Programs that run a slide through another implementation, each by the Python interpreter that has it installed.

They import NumPy, what they measure and each other, and nothing of this repository's packages.
"""
