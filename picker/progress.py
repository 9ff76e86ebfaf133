"""How far a stage of a run has come, in its log: a record for `vitrea watch`, and more seldom a line for people."""
import importlib.metadata
import os
import platform
import time

from vitrea.engine.log import format_clock

RECORD_SECONDS, LINE_SECONDS = 1.0, 10.0   # at least between two


def record_start(log, job, options, *, comm, **fields):
    """The first record of a run of the picker: what is run, where, and by which process, so that `vitrea watch` can
    tell a run that is gone."""
    log.record("start", job=job, output=str(options.output), input=str(options.input), ranks=comm.size,
               version=importlib.metadata.version("vitrea"), host=platform.node(), process=os.getpid(),
               options=options.as_dict(), **fields)


class Progress:
    """Tells of `of` pieces of a stage ("train", "scan", "extract"), of which a run before has done `earlier`."""

    def __init__(self, log, stage, of, *, words, earlier=0):
        self._log, self._stage, self._of, self._words, self._earlier = log, stage, of, words, earlier
        self._begin, self._from = time.monotonic(), None
        self._recorded = self._told = 0.0

    def tell(self, done, share=None, besides=""):
        """`done` pieces are done in this run, which are this share of its work (in pieces, if it is not given)."""
        now, share = time.monotonic() - self._begin, share if share is not None else done / max(self._of, 1)
        done += self._earlier
        if self._from is None:   # what a run before has done says nothing about the pace of this one
            self._begin, self._from, now = time.monotonic(), share, 0.0
        left = now * (1 - share) / (share - self._from) if share > self._from else None
        if now - self._recorded >= RECORD_SECONDS:
            self._recorded = now
            self._log.record("progress", stage=self._stage, iteration=done, of=self._of, fraction=1.0, eta=left)
        if now - self._told >= LINE_SECONDS:
            self._told = now
            words = [f"{self._words} {done:>{len(str(self._of))}}/{self._of}", f"{100 * share:3.0f} %", besides,
                     "" if left is None else f"{format_clock(left)} left"]
            self._log.line("   ".join(word for word in words if word))
