"""Arrays to arrays: the numerical work, without files, MPI or options."""
