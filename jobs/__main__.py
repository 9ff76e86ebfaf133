"""`python -m vitrea.jobs`: the command line where the `vitrea` script is not on the path."""

import sys

from vitrea.jobs.cli import main

sys.exit(main())
