"""The two-valley model: theory F1 to F5 against simulation and against itself (acceptance T1 to T12, what is cheap)."""
import numpy as np
import pytest
from scipy.integrate import quad

from vitrea.benchmarks import dynamics as acceptance
from vitrea.engine import comm as mpi
from vitrea.engine.two_valleys import (
    ANTI_ITO,
    FLAT,
    ITO,
    SHARP,
    STRATONOVICH,
    Landscape,
    diffusion,
    fluctuation,
    hopping_rates,
    occupancy,
    passage_time,
    separation,
    touching_rates,
)
from vitrea.engine.two_valleys_ensemble import Cell, Ensemble, Setting
from vitrea.engine.two_valleys_frozen import FrozenEnsemble
from vitrea.engine.two_valleys_printed import (
    printed_equilibrium,
    printed_freezing_y,
    printed_kramers_time,
    printed_occupancy,
    printed_occupancy_asymptotic,
    printed_speed,
    printed_transient_occupancy,
)
from vitrea.engine.two_valleys_transient import quenched, transient
from vitrea.kernels.langevin import CROSSED, CROSSED_Y, X

LANDSCAPE = Landscape()


def ended(cells, trajectories=2000, start_y=5.0, **setting):
    """state float64[cells, 4, trajectories] at the end, on this process alone."""
    ensemble = Ensemble(cells, Setting(LANDSCAPE, trajectories, start_y, **{"noise_power": 1, "seed": 5} | setting),
                        comm=mpi.alone())
    for number, first, last in ensemble.rounds():
        ensemble.advance(number, first, last)
    return ensemble.state


# ---- the formulas, among themselves and against integrals

def test_t1_barriers_are_equal_and_the_square_of_the_distance_over_the_width():
    assert acceptance.derivatives().holds
    assert pytest.approx(1.5148, abs=1e-4) == LANDSCAPE.gamma


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("place", [ITO, STRATONOVICH, ANTI_ITO])
def test_f2_is_the_integral_of_the_stationary_density(power, place):
    y, delta = 2.0, 2e-3
    a, d = fluctuation(LANDSCAPE, y, delta, power), diffusion(LANDSCAPE, y, delta, power)
    weights = [quad(lambda u, i=i: np.exp(-((u - LANDSCAPE.minima(y)[i]) ** 2 - LANDSCAPE.minima(y)[i] ** 2)
                                          / (2 * a[i])) / d[i] ** (1 - place), 0, 2)[0] for i in (FLAT, SHARP)]
    assert occupancy(LANDSCAPE, y, delta, power, place) == pytest.approx(weights[FLAT] / sum(weights), rel=1e-8)
    rates = hopping_rates(LANDSCAPE, y, delta, power, place)
    assert rates[SHARP] / rates.sum() == pytest.approx(weights[FLAT] / sum(weights), rel=1e-8)


def test_f2_of_isotropic_noise_knows_neither_progress_nor_strength_nor_rule():
    expected = np.sqrt(LANDSCAPE.gamma) / (1 + np.sqrt(LANDSCAPE.gamma))
    assert expected == pytest.approx(0.5517, abs=1e-4)
    for place in (ITO, STRATONOVICH, ANTI_ITO):
        np.testing.assert_allclose(occupancy(LANDSCAPE, [0.1, 1, 9], np.array([1e-3, 1e-2, 1e-1]), 0, place), expected)
    assert printed_equilibrium(LANDSCAPE) == pytest.approx(occupancy(LANDSCAPE, 1e-6, 1e-3), abs=1e-3)


@pytest.mark.parametrize(("y", "delta"), [(3.0, 1e-3), (2.5, 5e-4), (6.0, 1e-3)])
@pytest.mark.parametrize("place", [ITO, ANTI_ITO])
def test_f3_rates_are_those_of_the_exact_passage_times(y, delta, place):
    """There and back, a passage takes the sum of both times exactly; each alone up to settling, a time of f/2."""
    times = np.array([passage_time(LANDSCAPE, y, delta, 1, start, place) for start in (FLAT, SHARP)])
    rates = hopping_rates(LANDSCAPE, y, delta, 1, place)
    assert times.sum() == pytest.approx((1 / rates).sum(), rel=1e-9)
    assert np.all(np.abs(times - 1 / rates) < LANDSCAPE.widths(y).max() / 2)


def test_printed_rates_are_those_of_touching_the_ridge():
    y, delta = 9.0, 1e-3
    np.testing.assert_allclose(1 / touching_rates(LANDSCAPE, y, delta), printed_kramers_time(LANDSCAPE, y, delta))
    z, rates = separation(LANDSCAPE, y, delta), hopping_rates(LANDSCAPE, y, delta)
    slower = 1 / (printed_kramers_time(LANDSCAPE, y, delta) * rates)
    np.testing.assert_allclose(slower, [z.sum() / z[SHARP], z.sum() / z[FLAT]], rtol=0.08)
    np.testing.assert_allclose([z.sum() / z[FLAT], z.sum() / z[SHARP]], [1.81, 2.23], atol=0.005)


def test_printed_formulas_have_the_values_of_the_paper():
    assert printed_speed(LANDSCAPE) == pytest.approx(1.333e-5, rel=1e-3)
    np.testing.assert_allclose(printed_occupancy(LANDSCAPE, [1.0, 2, 3, 4], 1e-3), [0.660, 0.691, 0.754, 0.838],
                               atol=6e-4)
    assert printed_occupancy_asymptotic(LANDSCAPE, 1.0, 1e-3) == pytest.approx(0.580, abs=6e-4)
    closed = printed_transient_occupancy(LANDSCAPE, np.array([1e-4, 1e-3]), 0.01)
    assert np.all(closed > 0.997)
    assert closed[1] > closed[0]
    assert np.isnan(printed_freezing_y(LANDSCAPE, 0.5, 0.01))
    assert printed_freezing_y(LANDSCAPE, 1e-3, 30) == pytest.approx(5.04, abs=0.01)   # simulated: 4.53


def test_f4_and_f5_have_the_values_they_were_designed_with():
    """Table C and the quench table of the design, from an integration of its own."""
    deltas = 0.01 * np.array([0.005, 0.007, 0.01, 0.02, 0.05, 0.1, 0.2])
    course = transient(LANDSCAPE, deltas, 1000.0, 1.0)
    np.testing.assert_allclose(course.p_flat[-1], [0.714, 0.906, 0.938, 0.945, 0.954, 0.961, 0.968], atol=1.5e-3)
    assert np.all(np.diff(course.freezing_y) > 0)
    assert np.all(np.diff(occupancy(LANDSCAPE, 2.0, deltas)) < 0)   # the paradox that later freezing resolves
    for delta, expected in ((5e-4, [0.705, 0.753, 0.860, 0.952, 0.954]), (2e-3, [0.641, 0.656, 0.695, 0.908, 0.968])):
        times = [25, 50, 100, 300 if delta > 1e-3 else 200, 600]
        found = transient(LANDSCAPE, quenched(delta, times, 0.02), 1000.0, 1.0)
        np.testing.assert_allclose(found.p_flat[-1], expected, atol=2e-3)


# ---- simulations

def test_t2_variances_within_the_valleys():
    assert all(row.holds for row in acceptance.variances(3))


@pytest.mark.parametrize("place", [ITO, ANTI_ITO])
def test_t3_occupancy_depends_on_where_in_a_step_the_noise_is_evaluated(place):
    found = [FrozenEnsemble(LANDSCAPE, 2.0, eta, (1e-3 / eta, 1, place), seed=1).occupancy(150.0)
             for eta in (1e-2, 2.5e-3)]
    value, error = acceptance.extrapolated(np.array([1e-2, 2.5e-3]), found)
    assert value == pytest.approx(occupancy(LANDSCAPE, 2.0, 1e-3, 1, place), abs=4 * error)
    assert 4 * error < abs(occupancy(LANDSCAPE, 2.0, 1e-3, 1, ITO) - occupancy(LANDSCAPE, 2.0, 1e-3, 1, ANTI_ITO))


def test_t4_isotropic_noise_is_the_null():
    found = FrozenEnsemble(LANDSCAPE, 1.0, 1e-3, (1.0, 0, ITO), seed=1).occupancy(250.0)
    assert found.value == pytest.approx(0.5517, abs=0.01)
    assert found.error < 0.004


def test_t5_passages_from_valley_to_valley():
    found = FrozenEnsemble(LANDSCAPE, 3.0, 1e-3, (1.0, 1, ITO), 3000, 1).passage(SHARP)
    exact = passage_time(LANDSCAPE, 3.0, 1e-3)
    assert found.value == pytest.approx(exact, rel=0.07)
    assert found.value > 1.4 * printed_kramers_time(LANDSCAPE, 3.0, 1e-3)[SHARP]


def test_t6_t7_t9_three_cells_of_the_phase_diagram():
    pairs = [(0.0278256, 0.0359381, 0.920, 11.21), (0.0278256, 0.1, 0.969, 162.03), (0.01, 0.0774264, 0.707, 5.14)]
    state = ended([Cell(eta, sigma, 20_000) for eta, sigma, *_ in pairs])
    for (eta, sigma, p_flat, freezing_time), end in zip(pairs, state):
        found, error = (end[X] >= 0).mean(), np.sqrt(p_flat * (1 - p_flat) / 2000)
        assert found == pytest.approx(p_flat, abs=4 * np.sqrt(2) * error)
        theory = transient(LANDSCAPE, np.array([eta * sigma]), eta * 20_000, 5.0)
        assert found == pytest.approx(theory.p_flat[-1, 0], abs=0.012 + 3 * error)
        spread = eta * end[CROSSED].std() * np.sqrt(2 / 2000)
        assert eta * end[CROSSED].mean() == pytest.approx(freezing_time, abs=4 * spread)
        assert spread < 0.12 * freezing_time


def test_t10_quenched_early_the_sharp_valley_keeps_its_share():
    steps, times = 40_000, np.array([100.0, 300.0])
    cells = [Cell(0.01, 0.1, steps, np.where(0.01 * np.arange(steps) >= time, 0.02, 1.0)) for time in times]
    early, late = (ended(cells, 800, 1.0)[:, X] >= 0).mean(axis=1)
    np.testing.assert_allclose([early, late], transient(LANDSCAPE, quenched(1e-3, times, 0.02), 400.0, 1.0).p_flat[-1],
                               atol=0.05)
    assert late - early > 0.15


def test_t12_noise_as_the_square_of_the_hessian_can_be_too_much():
    cells = [Cell(rate, rate, 20_000) for rate in (0.1, 0.0215443)]
    noisy, middle = (ended(cells, 400, noise_power=2)[:, X] >= 0).mean(axis=1)
    assert middle - noisy > 0.07


def test_the_whole_hessian_makes_no_other_result():
    cells = [Cell(0.0599, 0.0278, 4000)]
    one, other = (ended(cells, 2000, full=full)[0] for full in (False, True))
    assert abs((one[X] >= 0).mean() - (other[X] >= 0).mean()) < 0.03
    assert np.mean(one[CROSSED_Y]) == pytest.approx(np.mean(other[CROSSED_Y]), rel=0.1)
    assert not np.array_equal(one, other)


# ---- ranks

@pytest.mark.mpi
def test_an_ensemble_has_the_same_bits_on_any_number_of_ranks(comm):
    cells = [Cell(0.1, 0.05, 400), Cell(0.1, 0.1, 300, np.linspace(1, 0, 300))]
    setting = Setting(LANDSCAPE, 61, 1.0, 1, 9, marks=(1.05, 1.3))
    found = {}
    for ranks, each in ((1, mpi.alone()), (comm.size, comm)):
        ensemble = Ensemble(cells, setting, comm=each)
        for number, first, last in ensemble.rounds():
            ensemble.advance(number, first, last)
        found[ranks] = ensemble.gathered()
    for name, array in found[comm.size].items():
        np.testing.assert_array_equal(array, found[1][name])
    assert 0 < (found[1]["passed"][0, 0] == 1).mean() < 1
