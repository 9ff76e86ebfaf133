"""The contrast transfer function of an electron microscope.

Sign: particles are white, so that C is positive at low frequency and C(0) is the amplitude contrast.
"""
import numpy as np

ANGSTROM_PER_MM = 1e7


def electron_wavelength(voltage):
    """Relativistic wavelength [Å] of electrons accelerated by `voltage` [kV] (Rohou & Grigorieff 2015, eq. 2)."""
    volts = 1e3 * np.asarray(voltage, dtype=np.float64)
    return 12.2643247 / np.sqrt(volts * (1.0 + 0.978466e-6 * volts))


def ctf(frequency, angle, *, defocus_u, defocus_v, defocus_angle, voltage, cs, amplitude_contrast,
        phase_shift=0.0, bfactor=0.0, intact_first_peak=False, dtype=np.float64):
    """Contrast transfer C(s, θ) at `frequency` s [1/Å] and `angle` θ [radians from x towards y]; all arguments
    broadcast.

    defocus_u, defocus_v [Å, underfocus positive], defocus_angle [degrees], voltage [kV], cs [mm],
    amplitude_contrast [1], phase_shift [degrees], bfactor [Å²]. Returns `dtype`; float32 takes half the time.

        C = −sin(χ − φ − arcsin Q₀) exp(−B s²/4),   χ = −π λ z(θ) s² + ½π C_s λ³ s⁴,
        z(θ) = ½(U + V) + ½(U − V) cos 2(θ − θ_ast)                   (Rohou & Grigorieff 2015, eqs. 3–5)

    intact_first_peak: C = 1 up to its first peak, for specimens whose lowest frequencies the CTF would overweight.
    """
    wavelength = electron_wavelength(voltage)
    s2 = np.square(np.asarray(frequency, dtype=np.float64))
    astigmatism = 0.5 * (defocus_u - defocus_v) * np.cos(2.0 * (angle - np.deg2rad(defocus_angle)))
    defocus = 0.5 * (defocus_u + defocus_v) + astigmatism
    aberration = 0.5 * np.pi * (cs * ANGSTROM_PER_MM) * wavelength**3 * s2**2
    # what does not depend on the angle is gathered first: it is a column beside an array of all angles
    phase = (aberration - np.deg2rad(phase_shift) - np.arcsin(amplitude_contrast)) - (np.pi * wavelength * defocus) * s2
    transfer = -_sine(phase, dtype)
    if intact_first_peak:
        # χ falls from 0 to its minimum at s² = z/(C_s λ²): only there can the first peak, phase −π/2, lie
        falling = s2 * (cs * ANGSTROM_PER_MM) * wavelength**2 <= np.maximum(defocus, 0.0)
        transfer = np.where(falling & (phase > -0.5 * np.pi), dtype(1.0), transfer)
    return transfer * np.exp(-0.25 * bfactor * s2).astype(dtype)


def _sine(phase, dtype):
    """sin of float64 `phase` as `dtype`: whole turns are taken off in double precision, so that what is left loses
    nothing in single precision, whose sine takes a fifth of the time."""
    turns = phase * (0.5 / np.pi)
    turns -= np.rint(turns)
    return np.sin(dtype(2.0 * np.pi) * turns.astype(dtype))
