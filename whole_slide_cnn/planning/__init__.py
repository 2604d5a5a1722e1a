"""Memory and time of a run, before it: which engine fits a machine, how long a slide takes, and which to choose."""
