"""The picker on simulated micrographs, beside a blob detector, and on pure noise: targets that need no real data.

    python -m vitrea.benchmarks.simulated --snr 0.3 0.1 --seeds 0 1 2

Micrographs of 704² px at 5.75 Å with about 65 particles of 230 Å, aggregates, contamination and edges of carbon; of
those, TRAINED are trained on and TESTED tested, within a quarter of the diameter. The detector is the Laplacian of a
Gaussian of σ = diameter / √8 on the same prepared micrographs; its threshold, like the network's, is the best of the
micrographs trained on. Noise is white, of the same size: every pick on it is false.
"""
import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
from scipy.ndimage import gaussian_laplace

from vitrea.benchmarks.picking import Specimen, Training, pick_and_score, places_and_discs, run_job, score_split
from vitrea.benchmarks.records import DEFAULT, keep, surroundings
from vitrea.engine.comm import world
from vitrea.picker import pick_job
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.evaluate import best_threshold, curve
from vitrea.picker.micrographs import Preparation, read_micrograph
from vitrea.picker.network import PRESETS
from vitrea.picker.options import PickOptions
from vitrea.picker.peaks import local_maxima, suppress
from vitrea.picker.results import candidates_path, coordinates_path
from vitrea.picker.simulate import MicrographSimulation, number_of, scene_of, simulate_micrographs

SIDE, PIXEL_SIZE, DIAMETER, PARTICLES = 704, 5.75, 230.0, 65.0
TRAINED, TESTED, NOISES = 8, 6, 3
SPECIMEN = Specimen(DIAMETER, 0.25 * DIAMETER / PIXEL_SIZE, 0.7, 0.0, TRAINED)


def main(argv=None):
    """Measure every SNR and seed, print a table, and keep the records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.simulated",
                                     description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--snr", nargs="+", type=float, default=[0.3, 0.1], metavar="S", help="signal over noise (default 0.3 0.1)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="seeds (default 0 1 2)")
    add("--network", choices=sorted(PRESETS), default="vitrea", help="network and its recipe (default %(default)s)")
    add("--steps", type=int, metavar="N", help="steps of training (default: the recipe's)")
    add("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (default %(default)s)")
    add("--json", action="store_true", help="print the records, not the table")
    given = parser.parse_args(argv)
    records = [_one(given, snr, seed) for snr in given.snr for seed in given.seeds]
    if not given.json:
        print(table(records))
    return 0


def _one(given, snr, seed):
    """The record of one SNR and seed, kept and, with --json, printed."""
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        folder = Path(temporary) / "simulated"
        simulation = MicrographSimulation(n=TRAINED + TESTED, pixel_size=PIXEL_SIZE, diameter=DIAMETER,
                                          particles=PARTICLES, snr=snr, size=(SIDE, SIDE), seed=seed)
        simulate_micrographs(simulation, folder, progress=lambda done, n: None)
        stems = sorted(path.stem for path in (folder / "coordinates").glob("*.star"))
        split, how = (stems[:TRAINED], stems[TRAINED:]), Training(given.network, seed, given.steps)
        found = score_split(folder, split, SPECIMEN, how, world())
        record = {"benchmark": "simulated", "network": given.network, "snr": snr, "seed": seed, "steps": given.steps,
                  **found, **_at_f2(folder, split, simulation), "blob_f1": _blobs(folder, split),
                  "noise_picks": _on_noise(folder, seed), **surroundings()}
    keep(given.records, record)
    if given.json:
        print(json.dumps(record), flush=True)
    return record


def _at_f2(folder, split, simulation):
    """On the micrographs tested, at the threshold of the largest F2 on those trained on: recall, and the share of all
    picks that lie on carbon or contamination."""
    tested = [_candidates(folder, stem) for stem in split[1]]
    pick_and_score(folder, split[0], SPECIMEN, folder / "training" / "model.npz", world())
    threshold, _ = best_threshold(curve([_candidates(folder, stem) for stem in split[0]], SPECIMEN.radius), 2.0)
    junk = [on_junk(scene_of(simulation, number_of(stem)), places[scores >= threshold])
            for stem, (places, scores, *_) in zip(split[1], tested)]
    return {"recall_at_f2": curve(tested, SPECIMEN.radius).counts(threshold).recall,
            "junk_share_at_f2": float(np.concatenate(junk).mean()) if sum(map(len, junk)) else 0.0}


def on_junk(scene, places):
    """bool[n]: which places float[n, 2] (y, x) lie on a Scene's carbon or contamination."""
    return np.maximum(scene.carbon_depth(*places.T), scene.contamination_depth(*places.T)) > 0


def _candidates(folder, stem):
    """(places, scores, truth, discs) of all candidates on a micrograph."""
    found = read_coordinates(candidates_path(folder / "picked", str(folder / "micrographs" / f"{stem}.mrc")))
    return found.places, found.score, *places_and_discs(folder, stem)


def _blobs(folder, split):
    """F1 of the Laplacian of a Gaussian on the micrographs tested."""
    scored = [[_blob_picks(folder, stem) for stem in stems] for stems in split]
    threshold, _ = best_threshold(curve(scored[0], SPECIMEN.radius), 1.0)
    return curve(scored[1], SPECIMEN.radius).counts(threshold).f()


def _blob_picks(folder, stem):
    micrograph = read_micrograph(folder / "micrographs" / f"{stem}.mrc")
    prepared = Preparation.of(PRESETS["vitrea"], DIAMETER).apply(micrograph)
    scale = micrograph.image.shape[0] / prepared.shape[0]
    blobs = gaussian_laplace(prepared, DIAMETER / PIXEL_SIZE / scale / np.sqrt(8))   # particles are dark: maxima
    places, values = local_maxima(blobs, 0.0)
    kept = suppress(places * scale, values, SPECIMEN.min_distance * DIAMETER / PIXEL_SIZE)
    return places[kept] * scale, values[kept], *places_and_discs(folder, stem)


def _on_noise(folder, seed):
    """Picks on each of NOISES micrographs of white noise, at the model's threshold."""
    made = folder / "noise"
    made.mkdir()
    for number in range(NOISES):
        noise = np.random.default_rng((seed, number)).normal(100, 10, size=(SIDE, SIDE)).astype(np.float32)
        with mrcfile.new(made / f"{number}.mrc", data=noise) as file:
            file.voxel_size = PIXEL_SIZE
    run_job(pick_job.run, PickOptions(input=made / "*.mrc", output=made / "picked", pictures=0,
                                      model=folder / "training" / "model.npz"), world())
    return [len(read_coordinates(coordinates_path(made / "picked", str(made / f"{number}.mrc"))))
            for number in range(NOISES)]


def table(records):
    """By SNR, medians of the seeds: F1, that of blobs, recall and share of picks on junk at the threshold of F2; the
    most picks on noise."""
    lines = ["| SNR | F1 | blobs' F1 | recall at F2 | picks on junk at F2 | picks on noise, most | CPU of training |",
             "|---" * 7 + "|"]
    for snr in dict.fromkeys(record["snr"] for record in records):
        of = [record for record in records if record["snr"] == snr]
        medians = [statistics.median(record[key] for record in of) for key in ("f1", "blob_f1", "recall_at_f2")]
        lines.append(f"| {snr:g} | " + " | ".join(f"{median:.3f}" for median in medians)
                     + f" | {100 * statistics.median(record['junk_share_at_f2'] for record in of):.1f} %"
                     + f" | {max(max(record['noise_picks']) for record in of)}"
                     + f" | {statistics.median(record['train_cpu_seconds'] for record in of):.0f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
