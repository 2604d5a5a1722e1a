"""Passes: pure functions from an operation graph to a plan, or to parts of one."""
