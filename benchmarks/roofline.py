"""Kernels under the roofline of the machine they ran on (Williams, Waterman & Patterson 2009)."""
import numpy as np

from vitrea.engine.files import written_beside

REACH = (2.0**-4, 2.0**12)    # flop/byte
IN_CACHE = 2.0**10            # flop/byte: where kernels stand that move nothing to or from memory


def draw_roofline(path, records):
    """PNG: GFLOP/s over operations per byte of memory traffic, each kernel a point, the limits of the last record."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    limits = records[-1]["limits"]
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    intensity = np.geomspace(*REACH, 200)
    roof = np.minimum(limits["sgemm"], intensity * limits["bandwidth"]) / 1e9
    axes.loglog(intensity, roof, "k-", lw=1.5)
    axes.axhline(limits["fftw"] / 1e9, color="0.5", ls="--", lw=1.0)
    axes.annotate(f"sgemm {limits['sgemm'] / 1e9:.0f} GFLOP/s", (REACH[1], roof[-1]), ha="right", va="bottom")
    axes.annotate(f"FFTW, length {limits['n_angles']}: {limits['fftw'] / 1e9:.1f} GFLOP/s",
                  (REACH[0], limits["fftw"] / 1e9), va="bottom", color="0.4")
    axes.annotate(f"memory {limits['bandwidth'] / 1e9:.0f} GB/s", (intensity[40], roof[40]), rotation=38, va="bottom",
                  ha="right")
    for number, record in enumerate(records):
        place = min(record["flops"] / record["bytes"], IN_CACHE) if record["bytes"] else IN_CACHE
        speed = record["flops_per_second"] / 1e9
        axes.plot(place, speed, "o", color=f"C{number % 10}",
                  label=f"{record['name']}: {speed:.3g} GFLOP/s, {100 * record['fraction_of_limit']:.0f} % of its limit")
    axes.set(xlabel="operations per byte from or to memory (in cache: at the right)", ylabel="GFLOP/s",
             title=f"{records[-1]['cpu']}, one core; load {records[-1]['load'][0]:.1f}")
    axes.legend(fontsize=8, loc="lower right")
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
