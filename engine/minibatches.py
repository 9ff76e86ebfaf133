"""The schedule of mini-batch EM: by iteration, how many particles, what they weigh, and how hot the posterior is.

Two knobs that are often mixed up (engine/anneal.py has their definitions). The *noise of batches* shakes the class
averages: sums of B particles enter a running average with the step α, which leaves α/(2 − α)/B of one particle's
variance in it. The *temperature of the posterior* blurs the assignments of each particle: log-likelihoods are divided
by T, as if the noise variance were T times what it is (deterministic annealing: Ueda & Nakano 1998, Neural Netw. 11,
271–282). Either may be there without the other.

The noisy stage ends by the clock, or by a measurement: from the present state two children go on with batches of their
own and are then cooled by EM over one and the same few particles, without noise. Where both end in the same classes,
more noise will not lead elsewhere. All that a schedule decides follows from the options and the state of the run.
"""
from dataclasses import dataclass, replace

from vitrea.engine.anneal import stationary_variance
from vitrea.engine.options import ANNEALED_PASSES

FORGETTING = 0.6          # step t is t^−0.6 where none is given (Cappé & Moulines 2009: between ½ and 1)
ANNEALED_SHARE = 0.5      # of the mini-batches, in which the temperature falls to 1
SHAKEN = 1                # mini-batches of each child
COOLED = 2                # E steps of each child over the probe; the last tells its classes
PROBE_A_CLASS, LEAST_PROBE = 5, 100   # particles of the probe
PROBE_SHARE = 0.15        # of all E steps, at most, is spent on children
LEAST_PROBES = 2          # that can find a run frozen, as one must confirm the other


def step_size(t, constant=None):
    """α: what the sums of mini-batch t = 1, 2, … weigh in the running average; falls as t^−0.6 unless constant."""
    return t ** -FORGETTING if constant is None else constant


@dataclass(frozen=True)
class Schedule:
    """batch: particles of a mini-batch, 0 for full passes from the start; step: α, None for t^−0.6; hottest:
    temperature of the first iteration; length: mini-batches at most; particles in all. Measured schedules: probe:
    particles that children are cooled by; every: mini-batches from one probe to the next, 0 for no probes. renews:
    whether classes that lose their support are re-seeded although there was no other news; settles: whether
    mini-batches also end when they bring none. Both as they were found best (docs/em-schedules.md)."""

    batch: int
    step: float | None
    hottest: float
    length: int
    particles: int
    probe: int = 0
    every: int = 0
    renews: bool = True
    settles: bool = False

    def batch_of(self, _t):
        """Particles of mini-batch t = 0, 1, …"""
        return self.batch

    def step_of(self, t):
        """α of mini-batch t = 0, 1, …; the first has nothing to be averaged with."""
        return 1.0 if t == 0 else step_size(t + 1.0, self.step)

    def noise_of(self, t):
        """α/(2 − α)/B of mini-batch t: what is left of one particle's variance in sums averaged like this."""
        return stationary_variance(self.step_of(t), self.batch_of(t))

    def temperature_of(self, stage, t):
        """Temperature of the posterior in iteration t = 0, 1, … of a stage: falls evenly in its logarithm, to 1."""
        if stage == "full":
            length = 0 if self.batch else ANNEALED_PASSES
        else:
            length = ANNEALED_SHARE * self.length
        return self.hottest ** (1.0 - t / length) if t < length else 1.0

    @property
    def allowance(self):
        """E steps of particles that all probes may take."""
        return PROBE_SHARE * (self.length * self.batch + self.particles)

    @property
    def probe_cost(self):
        """E steps of particles that a probe takes: two children."""
        return 2 * (SHAKEN * self.batch + COOLED * self.probe)

    def probe_is_due(self, t, probed=0.0):
        """Whether children are sent out after t mini-batches, when probes have seen `probed` particles. While the
        posterior is hot they would tell nothing."""
        if not self.every or not t or t % self.every or self.temperature_of("minibatch", t) > 1.0:
            return False
        return probed + self.probe_cost <= self.allowance

    def used_up(self, t, probed):
        """Whether t mini-batches, and `probed` particles of probes, are what the stage may take: probes are paid for
        by mini-batches, so that a measured schedule takes no longer than the clock's."""
        return t * self.batch + probed >= self.length * self.batch


def schedule_of(options, batch, particles):
    """The Schedule of a classify2d job whose mini-batches have `batch` particles (0: none) of so many."""
    plain = Schedule(batch, options.minibatch_step, options.start_temperature, options.minibatch_iterations, particles)
    if not batch or options.schedule == "clock":
        return plain
    probe = min(particles, max(LEAST_PROBE, PROBE_A_CLASS * options.n_classes))
    measured = replace(plain, probe=probe)
    affordable = int(measured.allowance / measured.probe_cost)
    return replace(measured, every=-(-plain.length // (affordable + 1)) if affordable >= LEAST_PROBES else 0)
