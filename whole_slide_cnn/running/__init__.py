"""What every learner shares: processes, checkpoints, slides, and assembling all of it from a configuration."""
