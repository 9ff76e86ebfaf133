"""Where the time of a program goes, seen from outside: clocks put round functions that it calls by name.

Every place is text, `module:name` or `module:Class.name`, looked up when the clocks start, so the engine knows nothing
of them. Time inside a place that lies inside another counts for the inner one only: the phases add up. A place that
is no longer there is listed in `missing`, and its time counts for the phase around it.
"""
import functools
import importlib
import threading
import time

OPAQUE = ("compile",)   # phases whose insides are not looked into: kernels run there, but not for the job
# What the E step calls, by phase. `coarse` is the whole coarse pass; `other` is what expect does besides.
E_STEP = {
    "other": ("vitrea.engine.expectation:expect", "vitrea.engine.em:expect"),
    "coarse": ("vitrea.engine.expectation:coarse_evidence",),
    "gather": ("vitrea.kernels.packed:PackedTable.gather", "vitrea.engine.expectation:ctf_terms"),
    "score": ("vitrea.engine.scoring:score_product", "vitrea.engine.scoring:add_priors",
              "vitrea.engine.scoring:fold_lines"),
    "posterior": ("vitrea.engine.expectation:keep_lines", "vitrea.engine.expectation:_normalise",
                  "vitrea.engine.expectation:weigh_lines", "vitrea.engine.expectation:_record_best",
                  "vitrea.engine.expectation:smallest_sets", "vitrea.engine.expectation:significant_poses"),
    "accumulate": ("vitrea.engine.expectation:accumulate_lines", "vitrea.kernels.fourier:LinesToHarmonics.execute",
                   "vitrea.engine.expectation:_gather_weights", "vitrea.engine.expectation:_block_sums"),
}
# What happens before and after the iterations, and around the E step.
RUN = {
    "compile": ("vitrea.engine.classify2d:compile_kernels",),
    "read": ("vitrea.engine.stacks:StackReader.read", "vitrea.engine.load:read_particles"),
    "transform": ("vitrea.engine.shards:Loader.load",),
    "templates": ("vitrea.engine.classify2d:make_search",),
    "m_step": ("vitrea.engine.classify2d:maximise",),
    "write": ("vitrea.engine.classify2d:results.write", "vitrea.engine.classify2d:write_checkpoint"),
}


class Clocks:
    """Context manager that puts clocks round places: `seconds` and `calls` by phase, `missing` places.

    timer: time.perf_counter, or time.process_time where only CPU time of a single thread counts. Times of several
    threads add up.
    """

    def __init__(self, *tables, timer=time.perf_counter):
        self.seconds, self.calls, self.missing, self._undo = {}, {}, [], []
        self._tables, self._timer, self._nest = tables, timer, threading.local()

    def __enter__(self):
        for table in self._tables:
            for phase, places in table.items():
                self.seconds.setdefault(phase, 0.0)
                self.calls.setdefault(phase, 0)
                for place in places:
                    self._put(phase, place)
        return self

    def __exit__(self, *_):
        while self._undo:
            owner, name, function = self._undo.pop()
            setattr(owner, name, function)

    def clear(self):
        """Start all clocks at zero."""
        for phase in self.seconds:
            self.seconds[phase], self.calls[phase] = 0.0, 0

    def _put(self, phase, place):
        module, _, path = place.partition(":")
        *outer, name = path.split(".")
        try:
            owner = functools.reduce(getattr, outer, importlib.import_module(module))
            function = getattr(owner, name)
        except (ImportError, AttributeError):
            self.missing.append(place)
            return
        self._undo.append((owner, name, function))
        setattr(owner, name, self.timed(phase, function))

    def timed(self, phase, function):
        """`function`, its time counted for `phase`, without what clocked functions inside it take."""
        @functools.wraps(function)
        def clocked(*arguments, **keywords):
            nest = self._nest.__dict__.setdefault("open", [])   # (phase, seconds in clocked functions inside)
            if nest and nest[-1][0] in OPAQUE:
                return function(*arguments, **keywords)
            nest.append([phase, 0.0])
            begin = self._timer()
            try:
                return function(*arguments, **keywords)
            finally:
                whole = self._timer() - begin
                self._count(phase, whole - nest.pop()[1])
                if nest:
                    nest[-1][1] += whole

        return clocked

    def _count(self, phase, seconds):
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.calls[phase] = self.calls.get(phase, 0) + 1
