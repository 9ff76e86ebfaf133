"""The benchmark of sets as large as ROME's, on a tiny one."""
from vitrea.benchmarks import rome
from vitrea.benchmarks.measure import read_lines


def test_a_replica_is_simulated_clustered_with_all_particles_an_iteration_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rome, "SETS", {"tiny": rome.Replica(150, 32, 3)})
    monkeypatch.setattr(rome, "VIEWS", 3)
    monkeypatch.setattr(rome, "PIXEL_SIZE", 8.0)
    monkeypatch.setattr(rome, "RESOLUTION", 20.0)
    monkeypatch.setattr("sys.argv", ["rome", "--sets", "tiny", "--keep", str(tmp_path), "--iterations", "20",
                                     "--records", str(tmp_path / "rome.jsonl")])
    rome.main()
    record, = read_lines(tmp_path / "rome.jsonl")
    assert (record["particles"], record["box"], record["classes"], record["ranks"]) == (150, 32, 3, 1)
    assert 0 < record["least"] <= record["seconds"] <= record["most"] < record["wall_seconds"]
    assert 0 < record["cpu_seconds_an_iteration"] < 60
    assert record["iterations"] <= 20
    assert record["memory"] > 50e6
    assert record["purity"] > 0.9
    assert "| tiny | 150 " in " ".join(capsys.readouterr().out.split())
