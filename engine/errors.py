"""The one exception for a user's mistakes."""


class JobError(Exception):
    """A mistake of the user's, told in one sentence: *where: what was found; what was expected; what to do*.

    The command line prints it without a traceback and leaves with exit code 2. Mistakes of a programmer are ValueError.
    """
