"""Particles to classes: particle files, the likelihood engine over MPI, checkpoints, the log of a run."""
