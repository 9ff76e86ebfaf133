"""Kernels under the roofline of the machine they ran on (Williams, Waterman & Patterson 2009)."""
import numpy as np

from vitrea.engine.files import written_beside

REACH = (2.0**-3, 2.0**7)     # flop/byte
IN_CACHE = (2.0**5, 1.12)     # flop/byte where kernels stand that move nothing to or from memory, and their distance


def draw_roofline(path, records):
    """PNG: GFLOP/s over operations per byte of memory traffic, each kernel a point, the limits of the last record."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _draw_limits(axes, records[-1]["limits"])
    place = IN_CACHE[0]
    for number, record in enumerate(records):
        speed = record["flops_per_second"] / 1e9
        intensity = record["flops"] / record["bytes"] if record["bytes"] else place
        place *= 1.0 if record["bytes"] else IN_CACHE[1]
        label = f"{record['name']}: {speed:.3g} GFLOP/s\n{100 * record['fraction_of_limit']:.0f} % of its limit"
        axes.plot(min(intensity, REACH[1]), speed, "o", color=f"C{number % 10}", label=label)
    axes.set(xlabel="operations per byte from or to memory (from 32 on: in cache)", ylabel="GFLOP/s",
             title=f"{records[-1]['cpu']}, one core; load {records[-1]['load'][0]:.1f}")
    figure.legend(fontsize=8, loc="outside right upper")
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _draw_limits(axes, limits):
    intensity = np.geomspace(*REACH, 200)
    roof = np.minimum(limits["sgemm"], intensity * limits["bandwidth"]) / 1e9
    axes.loglog(intensity, roof, "k-", lw=1.5)
    axes.axhline(limits["fftw"] / 1e9, color="0.5", ls="--", lw=1.0)
    axes.annotate(f"sgemm {limits['sgemm'] / 1e9:.0f} GFLOP/s", (REACH[1], roof[-1]), ha="right", va="bottom")
    axes.annotate(f"FFTW, length {limits['n_angles']}: {limits['fftw'] / 1e9:.1f} GFLOP/s",
                  (REACH[1], limits["fftw"] / 1e9), ha="right", va="bottom", color="0.4")
    axes.annotate(f" memory {limits['bandwidth'] / 1e9:.0f} GB/s", (intensity[20], roof[20]), va="top")
