"""What a benchmark is doing, told on stderr: stdout holds its results alone.

On a terminal one line is rewritten, with the runs that are done and the time left; elsewhere, as in the log of a batch
job, every step is one line. Nothing is drawn by a timer while a kernel is under the clock, which counts the CPU time
of this process.
"""
import sys
import time

from vitrea.engine.log import format_clock

REWRITTEN, LEAST_SECONDS = "\r\x1b[K", 0.2      # between two drawings of a line that is rewritten


class Progress:
    """Tells steps on `out`, by default the stderr of now."""

    def __init__(self, out=None):
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._begin, self._drawn, self._shown = time.monotonic(), 0.0, False
        self._words, self._of, self._count = "", None, None
        self._done, self._step_begin = 0, self._begin

    def step(self, words, of=None, count=None):
        """Begin a step, of `of` runs or iterations; count() -> int tells how many of them are done, where it can."""
        self._words, self._of, self._count, self._done = words, of, count, 0
        self._step_begin = time.monotonic()
        if self._live:
            self._draw()
        else:
            print(f"{format_clock(self._step_begin - self._begin)}  {words}{f', {of} in all' if of else ''}",
                  file=self._out, flush=True)

    def done(self):
        """One more run of the step is over."""
        self._done += 1
        if self._live:
            self._draw()

    def tick(self):
        """Draw the line anew, not too often; for whoever waits for a program that counts its own iterations."""
        if self._live and time.monotonic() - self._drawn > LEAST_SECONDS:
            self._done = self._count() if self._count else self._done
            self._draw()

    def result(self, text):
        """A line of results, on stdout."""
        self.clear()
        print(text, flush=True)

    def clear(self):
        """Take the line from the terminal."""
        if self._shown:
            print(REWRITTEN, end="", file=self._out, flush=True)
            self._shown = False

    def _draw(self):
        self._drawn = time.monotonic()
        print(f"{REWRITTEN}{self.line(self._drawn)}", end="", file=self._out, flush=True)
        self._shown = True

    def line(self, now):
        """The line at `now` [s of time.monotonic]."""
        words = f"{format_clock(now - self._begin)}  {self._words}"
        if not self._of:
            return f"{words}   {self._done} done" if self._count else words
        words += f"   {self._done} of {self._of} done"
        if 0 < self._done < self._of:
            words += f", {format_clock((now - self._step_begin) * (self._of / self._done - 1.0))} left"
        return words


class Silence(Progress):
    """A Progress that tells nothing; results are printed as ever."""

    def step(self, words, of=None, count=None):
        pass

    done = tick = lambda self: None


SILENCE = Silence()
