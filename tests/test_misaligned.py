"""The benchmark of wrong alignments: its errors are what it says, and nothing else changes."""
from types import SimpleNamespace

import numpy as np

from vitrea.benchmarks.endtoend import PIXEL_SIZE
from vitrea.benchmarks.misaligned import misaligned


def test_errors_have_the_size_that_was_asked_for_and_depend_on_the_seed():
    zeros = np.zeros(4000).astype(str)
    blocks = {"optics": {"rlnVoltage": np.array(["300"])},
              "particles": dict.fromkeys(("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"), zeros)
              | {"rlnImageName": np.arange(4000).astype(str)}}
    asked = SimpleNamespace(angle=3.0, shift=1.0)
    found = misaligned(blocks, asked, 0)
    columns = {label: found["particles"][label].astype(float) for label in blocks["particles"]}
    assert abs(columns["rlnAnglePsi"].std() - 3.0) < 0.15
    assert abs(columns["rlnOriginXAngst"].std() - PIXEL_SIZE) < 0.2
    assert abs(np.corrcoef(columns["rlnOriginXAngst"], columns["rlnOriginYAngst"])[0, 1]) < 0.06
    np.testing.assert_array_equal(found["particles"]["rlnImageName"], blocks["particles"]["rlnImageName"])
    assert found["optics"] is blocks["optics"]
    assert np.all(blocks["particles"]["rlnAnglePsi"] == "0.0")
    other = misaligned(blocks, asked, 1)["particles"]["rlnAnglePsi"]
    assert np.any(other != found["particles"]["rlnAnglePsi"])
