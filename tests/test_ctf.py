"""The contrast transfer function: zeros, signs and peaks from theory, and RELION's image of a point."""
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest

from vitrea.kernels.ctf import ctf, electron_wavelength

WAVELENGTH = 0.0196875   # Å at 300 kV, from tables
SCOPE = {"defocus_u": 15000.0, "defocus_v": 15000.0, "defocus_angle": 0.0, "voltage": 300.0, "cs": 2.7,
         "amplitude_contrast": 0.1}
FREQUENCY = np.linspace(0.0, 0.4, 4001)


def curve(frequency=FREQUENCY, angle=0.0, **changed):
    return ctf(frequency, angle, **SCOPE | changed)


@pytest.mark.parametrize(("voltage", "expected"), [(100.0, 0.0370144), (200.0, 0.0250793), (300.0, WAVELENGTH)])
def test_wavelengths_are_those_of_the_tables(voltage, expected):
    assert electron_wavelength(voltage) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("contrast", [0.0, 0.07, 0.1, 1.0])
def test_white_particles_keep_their_sign_at_zero_frequency(contrast):
    assert curve(0.0, amplitude_contrast=contrast) == pytest.approx(contrast, abs=1e-12)


@pytest.mark.parametrize("defocus", [4000.0, 15000.0])
def test_without_aberration_zeros_lie_at_the_roots_of_n_over_lambda_z(defocus):
    """C = sin(πλzs²): zeros at s = √(n/λz), the first lobe positive."""
    ideal = {"defocus_u": defocus, "defocus_v": defocus, "cs": 0.0, "amplitude_contrast": 0.0}
    zeros = np.sqrt(np.arange(1, 5) / (WAVELENGTH * defocus))
    np.testing.assert_allclose(curve(zeros, **ideal), 0.0, atol=2e-4)
    np.testing.assert_allclose(curve(np.sqrt((np.arange(4) + 0.5) / (WAVELENGTH * defocus)), **ideal), [1, -1, 1, -1],
                               atol=1e-6)


def test_it_equals_a_complex_wave_calculation():
    """Amplitude and phase contrast of the wave exp(iχ), damped; λ from the relativistic momentum, h/p."""
    planck, mass, charge, light = 6.62607015e-34, 9.1093837e-31, 1.602176634e-19, 2.99792458e8
    energy = charge * 200e3
    wavelength = planck * light / np.sqrt(energy * (energy + 2.0 * mass * light**2)) * 1e10
    s, theta = np.meshgrid(np.linspace(0.0, 0.35, 50), np.linspace(0.0, 2 * np.pi, 37))
    along = 21000.0 * np.cos(theta - 0.7) ** 2 + 17000.0 * np.sin(theta - 0.7) ** 2
    defocus_term = np.pi * wavelength * along * s**2
    aberration_term = 0.5 * np.pi * 2.0e7 * wavelength**3 * s**4
    wave = np.exp(1j * (aberration_term - defocus_term)) * np.exp(-1j * np.deg2rad(30.0))
    damping = np.exp(-80.0 * (s / 2.0) ** 2)
    contrast = 0.07
    expected = damping * (contrast * wave.real - np.sqrt(1.0 - contrast**2) * wave.imag)
    found = ctf(s, theta, defocus_u=21000.0, defocus_v=17000.0, defocus_angle=np.rad2deg(0.7), voltage=200.0, cs=2.0,
                amplitude_contrast=contrast, phase_shift=30.0, bfactor=80.0)
    np.testing.assert_allclose(found, expected, atol=5e-4)   # λ to six digits, χ up to 120


@pytest.mark.parametrize("direction", [0.0, 35.0, 120.0])
def test_defocus_u_acts_along_the_defocus_angle_and_v_across_it(direction):
    astigmatic = {"defocus_u": 18000.0, "defocus_v": 12000.0, "defocus_angle": direction}
    for turn, defocus in [(0.0, 18000.0), (90.0, 12000.0), (180.0, 18000.0), (45.0, 15000.0)]:
        found = curve(angle=np.deg2rad(direction + turn), **astigmatic)
        np.testing.assert_allclose(found, curve(defocus_u=defocus, defocus_v=defocus), atol=1e-9)


def test_a_quarter_wave_phase_plate_turns_the_sine_into_a_cosine():
    chi = np.pi * WAVELENGTH * 15000.0 * FREQUENCY**2
    plain = {"cs": 0.0, "amplitude_contrast": 0.0}
    np.testing.assert_allclose(curve(**plain), np.sin(chi), atol=2e-3)
    np.testing.assert_allclose(curve(phase_shift=90.0, **plain), np.cos(chi), atol=2e-3)


def test_arguments_broadcast_over_particles_frequencies_and_angles():
    defocus = np.array([9000.0, 15000.0, 22000.0])[:, None, None]
    angle = np.linspace(0.0, np.pi, 7)
    found = curve(FREQUENCY[None, :, None], angle, defocus_u=defocus, defocus_v=defocus - 1000.0)
    assert found.shape == (3, len(FREQUENCY), 7)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[1, :, 3], curve(angle=angle[3], defocus_v=14000.0))


# ---- intact first peak

@pytest.mark.parametrize("changed", [{}, {"cs": 0.0}, {"defocus_u": 6000.0}, {"phase_shift": 40.0}])
def test_the_intact_first_peak_is_one_up_to_the_peak_and_the_plain_ctf_after(changed):
    plain, intact = curve(**changed), curve(intact_first_peak=True, **changed)
    peak = np.flatnonzero((plain[1:-1] > plain[:-2]) & (plain[1:-1] >= plain[2:]))[0] + 1
    assert plain[peak] > 0.999
    np.testing.assert_array_equal(intact[:peak], 1.0)
    np.testing.assert_array_equal(intact[peak + 1:], plain[peak + 1:])


def test_where_cs_turns_the_phase_back_the_first_peak_is_not_found_again():
    """With Cs the phase returns through zero at s² = 2z/(Csλ²): the CTF there is no longer the first peak."""
    weak = {"defocus_u": 2000.0, "defocus_v": 2000.0, "cs": 2.7}
    back = np.sqrt(2.0 * 2000.0 / (2.7e7 * WAVELENGTH**2))
    around = np.linspace(0.95 * back, 1.05 * back, 301)
    plain, intact = curve(around, **weak), curve(around, intact_first_peak=True, **weak)
    assert (np.abs(plain) < 0.9).any()
    np.testing.assert_array_equal(intact, plain)


def test_the_intact_first_peak_is_still_damped():
    damped = curve(bfactor=100.0, intact_first_peak=True)
    np.testing.assert_allclose(damped[:100], np.exp(-25.0 * FREQUENCY[:100] ** 2))


def test_a_phase_plate_past_the_first_peak_leaves_the_ctf_as_it_is():
    np.testing.assert_array_equal(curve(phase_shift=90.0, intact_first_peak=True), curve(phase_shift=90.0))


# ---- RELION

def test_relion_filters_a_point_with_the_same_ctf(tmp_path):
    """The projection of a single bright voxel through RELION's CTF is that CTF's own transform."""
    if shutil.which("relion_project") is None:
        pytest.skip("relion_project is not installed")
    box_size, pixel_size = 48, 2.0
    volume = np.zeros((box_size,) * 3, dtype=np.float32)
    volume[(box_size // 2,) * 3] = 1.0
    mrcfile.write(tmp_path / "point.mrc", volume, voxel_size=pixel_size)
    optics = {"OpticsGroup": 1, "ImagePixelSize": pixel_size, "ImageSize": box_size, "ImageDimensionality": 2,
              "Voltage": 200, "SphericalAberration": 2.0, "AmplitudeContrast": 0.08}
    particle = {"ImageName": "1@none.mrcs", "AngleRot": 0, "AngleTilt": 0, "AnglePsi": 0, "OriginXAngst": 0,
                "OriginYAngst": 0, "OpticsGroup": 1, "DefocusU": 16000, "DefocusV": 12000, "DefocusAngle": 25,
                "PhaseShift": 20, "CtfBfactor": 0}
    lines = []
    for name, row in [("optics", optics), ("particles", particle)]:
        lines += [f"data_{name}", "", "loop_", *(f"_rln{label}" for label in row), " ".join(map(str, row.values())), ""]
    (tmp_path / "point.star").write_text("\n".join([*lines, ""]))
    command = "relion_project --i point.mrc --o out --ang point.star --ctf --angpix 2"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    image = mrcfile.read(tmp_path / "out.mrcs").reshape(box_size, box_size)
    theirs = np.fft.fft2(np.fft.ifftshift(image)).real
    step = np.fft.fftfreq(box_size, pixel_size)
    y, x = np.meshgrid(step, step, indexing="ij")
    ours = ctf(np.hypot(y, x), np.arctan2(y, x), defocus_u=16000.0, defocus_v=12000.0, defocus_angle=25.0,
               voltage=200.0, cs=2.0, amplitude_contrast=0.08, phase_shift=20.0)
    inside = np.hypot(y, x) < 0.95 * 0.5 / pixel_size
    np.testing.assert_allclose(theirs[inside] / theirs[0, 0], ours[inside] / ours[0, 0], atol=0.02 / ours[0, 0])
