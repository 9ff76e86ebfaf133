"""Job files and the command line: YAML to options to a run, and views of a run."""
