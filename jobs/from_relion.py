"""`vitrea from-relion`: a relion_refine command of a two-dimensional classification as a job file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.errors import JobError

PROGRAMS = ("relion_refine", "relion_refine_mpi")
LAUNCHERS = ("-n", "-np", "--n", "--np")

# RELION's option -> key of the job, where the value is the same.
SAME = {
    "--i": "input", "--K": "n_classes", "--particle_diameter": "particle_diameter", "--tau2_fudge": "tau2_fudge",
    "--iter": "max_iterations", "--psi_step": "psi_step", "--offset_range": "offset_range",
    "--offset_step": "offset_step", "--adaptive_fraction": "adaptive_fraction", "--maskedge": "mask_edge",
    "--strict_highres_exp": "max_resolution", "--j": "threads", "--random_seed": "seed", "--scratch_dir": "scratch",
}
# Options that need no key, and why.
NO_NEED = {
    "--zero_mask": "images are always masked with zeros",
    "--flatten_solvent": "references are always masked",
    "--oversampling": "the fine level halves the steps once",
    "--pad": "no padding is needed: averages are kept in polar harmonics",
    "--pool": "particles are always worked on in batches",
    "--preread_images": "particles are read once, and kept in memory or scratch (storage)",
    "--dont_combine_weights_via_disc": "sums never go through files",
    "--no_parallel_disc_io": "every rank reads its own particles once",
    "--onthefly_shifts": "shifts are never stored",
    "--cpu": "it always runs on processors",
    "--center_classes": "class averages are centred by default",
    "--verb": "the log is run.out",
    "--maxsig": "no limit is needed",
    "--allow_coarser_sampling": "steps do not change",
    "--keep_free_scratch": "scratch files are reserved before they are used",
    "--keep_scratch": "scratch vanishes with the run",
    "--reuse_scratch": "scratch vanishes with the run",
    "--perturb": "the search has no perturbation",
    "--pipeline_control": "the run folder tells its own state",
    "--dont_check_norm": "normalise: never",
    "--skip_gridding": "there is no gridding to skip",
    "--gpu": "there is no GPU version; it runs on processors",
}
# What a job cannot do: the command is still translated, and this is told.
WITHOUT = {
    "--scale": "intensity scales of groups of particles: norm_correction estimates one factor for each particle",
    "--ini_high": "a first resolution: references begin at the coarse level",
    "--firstiter_cc": "cross-correlation in the first iteration",
    "--always_cc": "cross-correlation",
    "--skip_align": "classification without alignment: use 'job: cluster', which keeps the poses",
    "--skip_rotate": "classification without rotation",
    "--solvent_mask": "a mask of one's own: the mask is a circle",
    "--helix": "helical processing",
    "--helical_outer_diameter": "helical processing",
    "--bimodal_psi": "helical processing",
    "--ref": "references of one's own: classes start from random averages",
    "--strict_lowres_exp": "a low-resolution limit",
    "--som": "self-organising maps: see 'job: cluster'",
    "--class_inactivity_threshold": "a threshold of inactivity: classes without support are always re-seeded",
    "--coarse_size": "the size of the coarse level: it is chosen from the particle",
    "--sigma_psi": "priors on angles",
}
GRADIENT = ("--grad", "--sgd", "--stochastic_em", "--fast_subsets")
CTF_WAYS = {"--ctf_phase_flipped": "phase_flipped", "--ctf_intact_first_peak": "intact_first_peak"}
THREE_D = ("--auto_refine", "--denovo_3dref", "--healpix_order", "--sym", "--split_random_halves", "--multibody_masks")


@dataclass(frozen=True)
class Translation:
    """keys of the job file {key: text}; ranks that the launcher was told, None if there was none; told: sentences about
    what has no counterpart."""

    keys: dict
    ranks: int | None
    told: tuple


def translate(command):
    """The Translation of a command line; JobError if it is no two-dimensional classification by relion_refine."""
    words = [word for word in shlex.split(command) if word not in ("`which", "\\")]
    place = next((i for i, word in enumerate(words) if Path(word.strip("`")).name in PROGRAMS), None)
    if place is None:
        raise JobError("from-relion: found no relion_refine or relion_refine_mpi; expected the whole command, in one "
                       "pair of quotes; see note.txt in RELION's job folder")
    given = _options(words[place + 1:])
    _require_2d(given)
    keys, told = {}, []
    for option, values in given.items():
        _one(option, values, keys, told)
    if keys.get("algorithm") == "minibatch" and "max_iterations" in keys:
        keys["minibatch_iterations"] = keys.pop("max_iterations")
        told.append("--iter: of a gradient run it counts mini-batches; full passes follow, at most "
                    "max_iterations of them")
    keys["output"] = _output(given)
    keys.setdefault("tau2_fudge", "1")   # RELION's default, which is not ours
    keys["norm_correction"] = "true" if "--norm" in given else "false"
    keys["ctf"] = next((way for option, way in CTF_WAYS.items() if option in given), "full") if "--ctf" in given \
        else "none"
    if float(keys.get("offset_range", 6)) < 0 or "offset_range" not in keys:
        keys["offset_range"] = "6"   # RELION's default
    return Translation(keys, _ranks(words[:place]), tuple(told))


def _options(words):
    """{option: values}, in the order given; the last of several counts, as for RELION."""
    found, option = {}, None
    for word in words:
        if word.startswith("--"):
            option = word
            found[option] = []
        elif word in ("&", ";", "|", ">", ">>"):
            break
        elif option is None:
            raise JobError(f"from-relion: '{word}' was found; expected an option like --K first; give the command as "
                           "it was run")
        else:
            found[option].append(word)
    return found


def _require_2d(given):
    if "--continue" in given:
        raise JobError("from-relion: found --continue; expected the command that the run began with; its options are "
                       "in the first line of run_it000_optimiser.star")
    three = [option for option in THREE_D if option in given]
    if three:
        raise JobError(f"from-relion: found {three[0]}, of a three-dimensional refinement; expected a two-dimensional "
                       "classification; there is no 3D here")
    missing = [option for option in ("--i", "--o", "--K", "--particle_diameter") if not given.get(option)]
    if missing:
        raise JobError(f"from-relion: found no {missing[0]}; expected --i, --o, --K and --particle_diameter; add it")


def _one(option, values, keys, told):
    """Put one option into the keys, or say what becomes of it."""
    if option in SAME:
        value = values[0] if values else ""
        if value.startswith("-"):
            return   # RELION's way of saying: the default
        keys[SAME[option]] = value
    elif option in GRADIENT:
        keys["algorithm"] = "minibatch"
    elif option == "--dont_check_norm":
        keys["normalise"] = "never"
    elif option in NO_NEED:
        told.append(f"{option}: not needed; {NO_NEED[option]}")
    elif option in WITHOUT:
        told.append(f"{option}: has no counterpart; {WITHOUT[option]}")
    elif option not in ("--o", "--norm", "--ctf", *CTF_WAYS):
        told.append(f"{option}: not known here; left out")


def _output(given):
    """RELION's rootname as a folder: Class2D/job012/run becomes Class2D/job012_vitrea, for a folder is not shared."""
    root = Path(given["--o"][0])
    return str(root.parent) + "_vitrea" if root.name.startswith("run") and root.parent != Path(".") else str(root)


def _ranks(words):
    number = next((words[i + 1] for i, word in enumerate(words[:-1]) if word in LAUNCHERS), "")
    return int(number) if number.isdigit() else None


def as_job_file(translation):
    """The text of the job file: the keys, checked as those of any job, and what was told as comments."""
    from vitrea.engine.options import options_of
    from vitrea.jobs.jobfile import JOBS

    known = options_of(JOBS["classify2d"].options)
    order = [name for name in known if name in translation.keys]
    width = max(map(len, order))
    lines = ["# from a relion_refine command; vitrea check says whether it can be run", "job: classify2d"]
    lines += [f"{name + ':':<{width + 1}} {translation.keys[name]}" for name in order]
    return "\n".join(lines + [f"# {words}" for words in translation.told]) + "\n"
