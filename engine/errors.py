"""The one exception for a user's mistakes."""
import re

LONGEST_WORD = 300   # characters of a word that was found and is quoted; files hold anything


class JobError(Exception):
    """A mistake of the user's, told in one sentence: *where: what was found; what was expected; what to do*.

    The command line prints it without a traceback and leaves with exit code 2. Mistakes of a programmer are ValueError.
    """

    def __init__(self, sentence):
        super().__init__(re.sub(rf"\S{{{LONGEST_WORD + 1},}}", _shortened, str(sentence)))


def _shortened(word):
    return f"{word[0][:LONGEST_WORD // 3]}…{word[0][-LONGEST_WORD // 3:]}"
