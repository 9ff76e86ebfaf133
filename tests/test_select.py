"""`vitrea select`: rules, the files it writes, and a page that answers its own person only."""
import http.client
import json
import threading
from contextlib import closing

import numpy as np
import pytest

from tests.finished_runs import make_run
from vitrea.engine.errors import JobError
from vitrea.engine.finished import read_finished
from vitrea.engine.particles import read_particles
from vitrea.engine.star import read_star
from vitrea.engine.subset import read_kept
from vitrea.jobs.cli import main
from vitrea.jobs.select import Rules, by_hand, choose, parse_classes
from vitrea.jobs.select_run import serve

SIZES = (40, 7, 0, 90, 12)   # resolved to shell 4, 5, none, 7, 8 of a box of 128 Å


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", SIZES)


@pytest.fixture
def page(folder, tmp_path):
    """A server of the page, and `ask(method, place, …)` -> (status, headers, text)."""
    server = serve(read_finished(folder), Rules(particles=10), tmp_path / "chosen")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    def ask(method, place, body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)) as connection:
            connection.request(method, place, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    yield server, ask
    server.shutdown()
    server.server_close()
    thread.join()


def own(server):
    return {"Origin": f"http://127.0.0.1:{server.server_port}", "Content_Type": "application/json"}


@pytest.mark.parametrize(("rules", "kept"), [
    (Rules(classes="1, 4-5"), [1, 4, 5]),
    (Rules(resolution=32 * 4 / 7), [4, 5]),
    (Rules(particles=12), [1, 4, 5]),
    (Rules(particles=13, resolution=20.0), [4]),
    (Rules(classes="2-3"), [2]),   # class 3 is empty
])
def test_rules_are_all_to_be_fulfilled(folder, rules, kept):
    assert (np.flatnonzero(choose(read_finished(folder), rules).kept) + 1).tolist() == kept


def test_a_score_is_a_rule_like_others(folder):
    choice = choose(read_finished(folder), Rules(score=0.5), np.array([0.9, 0.2, np.nan, 0.5, 0.49]))
    assert np.flatnonzero(choice.kept).tolist() == [0, 3]
    assert choice.why[4] == "score 0.49 is below 0.5"


@pytest.mark.parametrize(("text", "found"), [("7", "7"), ("0", "0"), ("2-1", "2-1"), ("1,x", "x"), ("", "")])
def test_numbers_that_are_no_classes_are_told(text, found):
    with pytest.raises(JobError, match=f"--classes: '{found}' was found"):
        parse_classes(text, 5)


def test_every_particle_is_selected_or_rejected_text_for_text(folder, capsys):
    assert main(["select", str(folder), "--min-particles", "12", "--min-resolution", "30"]) == 0
    assert "2 of 5 classes   102 particles selected, 47 rejected" in capsys.readouterr().out
    whole = read_star(folder / "run_data.star")
    parts = [read_star(folder / "selection" / name)["particles"] for name in ("selected.star", "rejected.star")]
    kept = np.isin(whole["particles"]["rlnClassNumber"], ["4", "5"])
    for part, rows in zip(parts, (kept, ~kept)):
        for label, column in whole["particles"].items():
            assert part[label].tolist() == column[rows].tolist()
    assert read_star(folder / "selection" / "selected.star")["optics"].keys() == whole["optics"].keys()


def test_what_was_chosen_and_why(folder):
    assert main(["select", str(folder), "--min-particles", "12", "--min-resolution", "30"]) == 0
    found = json.loads((folder / "selection" / "selection.json").read_text())
    assert found["criteria"] == ["--min-resolution 30", "--min-particles 12"]
    assert found["particles_selected"] == 102
    assert [one["kept"] for one in found["classes"]] == [False, False, False, True, True]
    assert found["classes"][1]["why"] == "7 particles are fewer than 12"
    assert found["classes"][0]["why"] == "resolution 32.0 Å is worse than 30 Å"
    assert found["classes"][2] | {"why": ""} == {"class": 3, "kept": False, "why": "", "particles": 0,
                                                 "resolution": None, "score": None}
    classes = read_star(folder / "selection" / "selection.star")["classes"]
    assert classes["rlnSelected"].tolist() == ["0", "0", "0", "1", "1"]


def test_selected_particles_are_an_input(tmp_path, stacks, monkeypatch):
    folder = make_run(tmp_path / "run", (100, 140), seed=3)
    text = (folder / "run_data.star").read_text().replace("@stack.mrcs", f"@{stacks / 'plain' / 'particles.mrcs'}")
    (folder / "run_data.star").write_text(text.replace("4.000000           32", "6.000000           32"))
    assert main(["select", str(folder), "--classes", "2", "--out", str(tmp_path / "chosen")]) == 0
    assert len(read_particles(tmp_path / "chosen" / "selected.star")) == 140


def test_a_selection_is_not_replaced_in_passing(folder, capsys):
    arguments = ["select", str(folder), "--classes", "1"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "a selection is already there" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "words"), [
    ([], "no rule was given"), (["--min-particles", "1000"], "no class fulfils --min-particles 1000")])
def test_nothing_to_select_is_told(folder, capsys, more, words):
    assert main(["select", str(folder), *more]) == 2
    assert words in capsys.readouterr().err


def test_what_a_person_changed_is_by_hand(folder):
    run = read_finished(folder)
    choice = by_hand(choose(run, Rules(particles=12)), np.array([True, True, False, False, True]))
    assert choice.why == ("fulfils --min-particles 12", "kept by hand", "no particles", "rejected by hand",
                          "fulfils --min-particles 12")
    assert choice.criteria == ("--min-particles 12", "by hand")


def test_the_page_saves_what_was_kept(page, folder, tmp_path):
    server, ask = page
    status, headers, text = ask("GET", f"/{server.token}/")
    assert status == 200
    assert '"kept":[1,4,5]' in text
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    status, _, text = ask("POST", f"/{server.token}/save", '{"kept": [1, 2, 3]}', **own(server))
    assert (status, json.loads(text)["selected"]) == (200, 47)
    assert read_kept(tmp_path / "chosen", 5).tolist() == [True, True, False, False, False]


def test_the_page_goes_on_with_an_earlier_selection(folder, tmp_path):
    assert main(["select", str(folder), "--classes", "2,5"]) == 0
    server = serve(read_finished(folder), Rules(), folder / "selection")
    server.server_close()
    assert '"kept":[2,5]' in server.page.decode()


@pytest.mark.parametrize(("method", "place", "headers", "status"), [
    ("GET", "/{token}/", {"Host": "evil.example:80"}, 421),            # a name that was made to point here
    ("GET", "/{token}/", {"Host": "127.0.0.1.evil.example"}, 421),
    ("GET", "/", {}, 404),
    ("GET", "/wrong/", {}, 404),
    ("GET", "/{token}/../../etc/passwd", {}, 404),
    ("POST", "/{token}/save", {"Content_Type": "application/json"}, 403),                                  # no origin
    ("POST", "/{token}/save", {"Origin": "http://evil.example", "Content_Type": "application/json"}, 403),
    ("POST", "/{token}/save", {"Origin": "null", "Content_Type": "application/json"}, 403),
    ("POST", "/{token}/save", {"Origin": "http://127.0.0.1:{port}", "Content_Type": "text/plain"}, 415),   # a form
    ("POST", "/wrong/save", {"Origin": "http://127.0.0.1:{port}", "Content_Type": "application/json"}, 404),
])
def test_others_are_refused(page, tmp_path, method, place, headers, status):
    server, ask = page
    known = {"token": server.token, "port": server.server_port}
    found = ask(method, place.format(**known), '{"kept": [1]}' if method == "POST" else None,
                **{name: value.format(**known) for name, value in headers.items()})
    assert found[0] == status
    assert found[1]["X-Frame-Options"] == "DENY"
    assert server.token not in found[2]
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(("body", "status"), [
    ("{", 400), ("[]", 400), ('{"kept": [99]}', 400), ('{"kept": ["1"]}', 400), ('{"kept": [true]}', 400),
    ("x" * 1_000_001, 413)])
def test_messages_that_make_no_sense_are_refused(page, body, status):
    server, ask = page
    assert ask("POST", f"/{server.token}/save", body, **own(server))[0] == status


def test_tokens_differ_and_only_this_machine_is_served(folder):
    servers = [serve(read_finished(folder), Rules(), folder / "s") for _ in range(2)]
    for server in servers:
        server.server_close()
    assert servers[0].token != servers[1].token
    assert len(servers[0].token) >= 40
    assert servers[0].server_address[0] == "127.0.0.1"


def test_a_disk_that_refuses_is_told_on_the_page(page, tmp_path):
    server, ask = page
    (tmp_path / "chosen").write_text("a file where the folder should be")
    status, _, text = ask("POST", f"/{server.token}/save", '{"kept": [1]}', **own(server))
    assert status == 500
    assert "the folder cannot be made (File exists)" in json.loads(text)["error"]


@pytest.mark.parametrize("rule", ["--score", "--min-stability"])
@pytest.mark.parametrize("value", ["5", "-0.1", "nan", "much"])
def test_shares_lie_between_0_and_1(tmp_path, capsys, rule, value):
    with pytest.raises(SystemExit) as ended:
        main(["select", str(tmp_path), f"{rule}={value}"])
    assert ended.value.code == 2
    assert f"'{value}' was found; expected a number from 0 to 1" in capsys.readouterr().err
