"""Where the time of an E step goes: a clock that a thread stops at the end of each phase."""
import time

PHASES = ("coarse", "score", "posterior", "accumulate")


class PhaseClock:
    """seconds: wall time by phase since the clock was made, of the one thread that owns it."""

    def __init__(self):
        self.seconds, self._last = dict.fromkeys(PHASES, 0.0), 0.0

    def start(self):
        """What was before counts for no phase."""
        self._last = time.perf_counter()

    def end(self, phase):
        """The time since the last call counts for `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def mean_seconds(clocks, threads):
    """{phase: seconds} of an average thread of `threads`, of which those with particles have clocks."""
    return {phase: sum(clock.seconds[phase] for clock in clocks) / threads for phase in PHASES}
