import importlib
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from docutils.core import publish_doctree
from docutils.parsers.rst import roles

from ethalign import claims, config, metrics, records, results, study, tables
from ethalign.config import UserError

ENTRY = {
    "id": "b-beats-a",
    "claim": "B answers better than A.",
    "source": "abstract",
    "estimand": "accuracy",
    "dataset": "quiz",
    "first": "B",
    "second": "A",
    "direction": "greater",
}


OWN = tuple(study.Stage(name, variant=name) for name in ("beside", "aside"))


def told(**changes: Any) -> claims.Claim:
    return claims.Claim.model_validate({**ENTRY, **changes})


def contrast(claim: claims.Claim, parts: Mapping[str, pd.DataFrame]) -> claims.Contrast | None:
    if not {claim.first, claim.second} <= {*parts}:
        return None
    right = tuple(parts[v]["right"].to_numpy(bool) for v in (claim.first, claim.second))
    return claims.Contrast(metrics.gap, right, parts[claim.first]["id"].to_numpy())


@pytest.fixture
def assess(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Claims of a study of this test, on rows that it writes."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    owner = study.Study("toy", "", config.Run, OWN)
    monkeypatch.setattr(study, "find", lambda name: owner._replace(claims=contrast))

    def assessed(
        entries: list[dict[str, Any]], rows: dict[str, list[int]], *more: Path
    ) -> pd.DataFrame:
        path = tmp_path / "configs" / "toy" / "claims.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"claims": [{**ENTRY, **e} for e in entries]}))
        for place, right in rows.items():
            file = tmp_path / "home" / place / "predictions.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            records.write(file, pd.DataFrame({"id": range(len(right)), "right": right}))
        return claims.assess("toy", {"mine": tmp_path / "home"})

    return assessed


def test_a_verdict_says_whether_the_claim_stands(assess: Any) -> None:
    low, high = [1] * 20 + [0] * 80, [1] * 70 + [0] * 30
    rows = {"m/A/0": low, "m/B/0": high, "m/C/0": [1] * 23 + [0] * 77}
    entries = [
        {},
        {"id": "a-beats-b", "first": "A", "second": "B"},
        {"id": "less", "first": "A", "second": "B", "direction": "less"},
        {"id": "a-little", "first": "C"},
        {"id": "never-run", "first": "D"},
    ]
    found = assess(entries, rows).set_index("id")
    assert found["verdict"].to_dict() == {
        "b-beats-a": "supported",
        "a-beats-b": "contradicted",
        "less": "supported",
        "a-little": "inconclusive",
        "never-run": "not run",
    }
    assert found.loc["b-beats-a", "difference"] == pytest.approx(0.5)
    # Three in a hundred could not have been found; the table says what could.
    assert 0.03 < found.loc["a-little", "detectable"] < 0.15
    assert found.loc["never-run", "n"] == 0
    assert math.isnan(found.loc["never-run", "p"])


def test_the_correction_stays_within_a_family_and_a_model(assess: Any) -> None:
    weak = [1] * 60 + [0] * 40, [1] * 52 + [0] * 48
    rows = {"m/A/0": weak[1], "m/B/0": weak[0], "n/A/0": weak[1], "n/B/0": weak[0]}
    alone = assess([{}], rows)
    assert (alone["holm"] == alone["p"]).all()
    with_others = assess([{}, {"id": "other", "family": "controls"}], rows)
    assert (with_others["holm"] == with_others["p"]).all()
    same = assess([{}, {"id": "other"}], rows)
    assert (same["holm"] == np.minimum(1, 2 * same["p"])).all()


def test_seeds_are_taken_together_and_what_has_a_model_of_its_own_stands_beside(
    assess: Any,
) -> None:
    a, b = [0, 0, 1, 1] * 10, [1, 1, 1, 0] * 10
    found = assess(
        [{}, {"id": "beside", "second": "beside"}],
        {"m/A/0": a, "m/B/0": b, "m/A/1": a, "m/B/1": a, "other/beside/0": a},
    ).set_index("id")
    assert found.loc["b-beats-a", ["seeds", "n"]].tolist() == [2, 40]
    assert found.loc["b-beats-a", "difference"] == pytest.approx(0.125)
    assert found.loc["beside", "seeds"] == 1
    assert list(found["model"]) == ["m", "m"]


def test_what_is_said_of_other_models_alone_is_tested_once(assess: Any) -> None:
    """Beside each of two models it would stand twice, and make their own corrections larger."""
    a, b = [0, 0, 1, 1] * 10, [1, 1, 1, 0] * 10
    found = assess(
        [{}, {"id": "apart", "first": "beside", "second": "aside"}],
        {"m/A/0": a, "m/B/0": b, "n/A/0": a, "n/B/0": b, "other/beside/0": b, "other/aside/0": a},
    )
    rows = [("b-beats-a", "m"), ("b-beats-a", "n"), ("apart", "other")]
    assert [*zip(found["id"], found["model"], strict=True)] == rows
    assert (found["holm"] == found["p"]).all()


def test_a_model_as_it_is_stands_beside_every_seed_of_another(assess: Any, tmp_path: Path) -> None:
    a, b, c = ([int(u < p) for u in np.random.default_rng(0).random(40)] for p in (0.3, 0.5, 0.8))
    for place, tuned in (("A/0", False), ("B/0", True), ("B/1", True)):
        made = tmp_path / "home" / "m" / place / "config.yaml"
        made.parent.mkdir(parents=True)
        made.write_text(yaml.safe_dump({"tuning": {"enabled": tuned}}))
    entries = [{}, {"id": "alone", "first": "A"}, {"id": "c", "second": "C"}]
    rows = {"m/A/0": a, "m/B/0": b, "m/B/1": c, "m/C/0": a}
    found = assess(entries, rows).set_index("id")
    assert found["seeds"].to_dict() == {"b-beats-a": 2, "alone": 1, "c": 1}
    assert found.loc["b-beats-a", "difference"] == pytest.approx(np.mean(b + c) - np.mean(a))
    made = tmp_path / "home" / "m" / "A" / "0" / "config.yaml"
    made.write_text(yaml.safe_dump({"tuning": {"enabled": True}}))
    assert assess(entries, rows).set_index("id").loc["b-beats-a", "seeds"] == 1


def test_seeds_are_aligned_by_their_items_and_not_by_their_places(
    assess: Any, tmp_path: Path
) -> None:
    """Seeds tune on different rows, so that a stratum such as *rows tuned on* differs."""
    rng = np.random.default_rng(0)
    right = {
        f"m/{name}/{seed}": [int(u < p) for u in rng.random(40)]
        for name, p in (("A", 0.3), ("B", 0.6))
        for seed in (0, 1)
    }
    found = [assess([{}], right)]
    changes: list[Callable[[pd.DataFrame], pd.DataFrame]] = [
        lambda rows: rows[::-1],
        lambda rows: rows.assign(id=rows["id"] + 40),
        lambda rows: rows[:30].assign(id=rows["id"] + 20),
    ]
    for change in changes:
        for name in ("A", "B"):
            rows = pd.DataFrame({"id": range(40), "right": right[f"m/{name}/1"]})
            file = tmp_path / "home" / "m" / name / "1" / "predictions.jsonl"
            records.write(file, change(rows))
        found.append(claims.assess("toy", {"mine": tmp_path / "home"}))
    same, turned, others, fewer = (table.iloc[0] for table in found)
    pd.testing.assert_series_equal(turned, same, check_names=False, rtol=1e-9)
    assert (same["n"], others["n"], fewer["n"]) == (40, 80, 50)
    assert others["seeds"] == fewer["seeds"] == 2
    assert others["difference"] == pytest.approx(same["difference"])
    b, a = ([np.mean(right[f"m/{k}/{s}"][: 40 - 10 * s]) for s in (0, 1)] for k in "BA")
    assert fewer["difference"] == pytest.approx(np.mean(b) - np.mean(a))


def test_near_copies_stay_together_where_seeds_have_different_items() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random(20) < 0.5, 4)  # four copies of each answer
    made = [
        claims.Contrast(metrics.gap, (alike, ~alike), np.arange(80) + shift) for shift in (0, 40)
    ]
    copies = [c._replace(groups=c.items // 4) for c in made]
    ways = {"alone": made, "copies": copies, "one of both": [copies[0], made[1]]}
    spread = {}
    for name, seeds in ways.items():
        owner = study.Study("toy", "", config.Run, (), claims=lambda _, parts: parts["made"])
        parts: Any = {seed: {"made": found} for seed, found in enumerate(seeds)}
        row = claims.tested(owner, told(), parts)
        assert (row["n"], row["seeds"]) == (120, 2)
        spread[name] = row["high"] - row["low"]
    assert spread["copies"] > 1.6 * spread["alone"]
    assert spread["alone"] < spread["one of both"] < spread["copies"]


def test_without_any_run_every_claim_is_told_as_not_run(assess: Any) -> None:
    assert assess([{}], {})["verdict"].tolist() == ["not run"]


@pytest.mark.parametrize(
    ("direction", "difference", "expected"),
    [
        ("noninferior", 0.0, 1),
        ("noninferior", -0.2, -1),
        ("equivalent", 0.0, 1),
        ("equivalent", 0.2, -1),
        ("equivalent", -0.2, -1),
        ("greater", -0.2, -1),
        ("less", -0.2, 1),
    ],
)
def test_margins(direction: str, difference: float, expected: int) -> None:
    margin = 0.1 if direction in ("noninferior", "equivalent") else 0.0
    draws = np.random.default_rng(0).normal(difference, 0.02, 4000)
    p, most, side = claims.decide(told(direction=direction, margin=margin), draws)
    assert side == expected
    assert p < most < p + 0.01
    assert p < 0.01
    wide = np.random.default_rng(0).normal(difference, 1, 4000)
    assert claims.decide(told(direction=direction, margin=margin), wide)[0] > 0.3


def test_equivalence_is_two_one_sided_tests() -> None:
    draws = np.random.default_rng(0).normal(0.06, 0.02, 20000)
    p, _, side = claims.decide(told(direction="equivalent", margin=0.1), draws)
    assert side == 1
    assert p == pytest.approx(2 * np.mean(draws >= 0.1))


def test_a_draw_on_the_border_speaks_for_both_sides() -> None:
    """Rounding must not decide on which side of a margin a difference of exactly that lies."""
    claim = told(direction="noninferior", margin=0.1)
    lost = np.repeat([4, 3, 2, 1], [10, 20, 30, 40])
    hits = np.arange(30)
    draws = np.array([(hits < 20 - k).mean() - (hits < 20).mean() for k in lost])
    p, _, side = claims.decide(claim, draws)
    assert side == 1
    assert p == pytest.approx(2 * 0.3)


@pytest.mark.parametrize(("beyond", "sure"), [(300, True), (480, False), (520, False)])
def test_a_verdict_survives_the_error_of_the_resampling(
    beyond: int, sure: bool, monkeypatch: pytest.MonkeyPatch, assess: Any
) -> None:
    """With 20,000 draws, 480 beyond zero are p = .048, which another seed could make .052."""
    draws = np.linspace(0.01, 1, claims.DRAWS)
    draws[:beyond] = -0.01
    found = metrics.Crossed(0.1, 0.01, 0.2, 0.1, draws)
    monkeypatch.setattr(metrics, "crossed", lambda *_, **__: found)
    table = assess([{}], {"m/A/0": [1] * 50, "m/B/0": [0] * 50})
    assert table["p"].tolist() == [pytest.approx(2 * beyond / claims.DRAWS)]
    assert table["verdict"].tolist() == ["supported" if sure else "inconclusive"]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_items_that_all_agree_show_nothing(assess: Any, n: int) -> None:
    """The exact sign test of five has p = 2 / 32."""
    table = assess([{}], {"m/A/0": [1] * n, "m/B/0": [0] * n})
    assert table["verdict"].tolist() == ["inconclusive"]
    assert table["p"].iloc[0] == pytest.approx(2 * 0.5**n, rel=0.01)
    assert table["low"].iloc[0] < 1 - 1 / n


@pytest.mark.parametrize(("n", "expected"), [(20, "inconclusive"), (400, "supported")])
def test_agreement_on_few_items_does_not_show_equivalence(
    assess: Any, n: int, expected: str
) -> None:
    found = assess(
        [{"direction": "equivalent", "margin": 0.05}], {"m/A/0": [1] * n, "m/B/0": [1] * n}
    )
    assert found["verdict"].tolist() == [expected]


def test_what_is_wrong_in_a_file_of_claims_is_said(assess: Any) -> None:
    for change, message in (
        ({"direction": "better"}, "b-beats-a: direction"),
        ({"direction": "equivalent"}, "a margin belongs"),
        ({"margin": 0.1}, "a margin belongs"),
        ({"estimate": "x"}, "estimate"),
    ):
        with pytest.raises(UserError, match=message):
            assess([change], {})
    with pytest.raises(UserError, match="b-beats-a must be the id of one claim"):
        assess([{}, {}], {})


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the book makes of a sentence, and what it complains of."""
    monkeypatch.syspath_prepend(str(config.ROOT / "book" / "_ext"))
    verdicts = importlib.import_module("verdicts")
    known = {("lr-beats-l", ""): "inconclusive", ("lr-beats-l", "large"): "supported"}
    monkeypatch.setattr(verdicts, "verdicts", lambda study: known)
    roles.register_local_role("verdict", verdicts.Verdict())

    def built(text: str) -> tuple[str, str]:
        warnings = io.StringIO()
        page = publish_doctree(
            f"So: :verdict:`{text}`", settings_overrides={"warning_stream": warnings}
        )
        return page.astext(), warnings.getvalue()

    return built


def test_a_sentence_may_repeat_only_the_verdict_of_todays_records(build: Any) -> None:
    assert build("reasons/lr-beats-l: inconclusive") == ("So: inconclusive", "")
    assert build("reasons/lr-beats-l@large: supported") == ("So: supported", "")
    assert "is inconclusive, not supported" in build("reasons/lr-beats-l: supported")[1]
    assert "is unknown, not supported" in build("reasons/l-beats-lr: supported")[1]
    for odd in ("lr-beats-l", "nostudy/lr-beats-l: supported"):
        assert "not of the form study/claim: verdict" in build(odd)[1]


def test_a_page_shows_every_claim_with_its_interval_and_verdict(assess: Any) -> None:
    rows = {"m/A/0": [1] * 20 + [0] * 80, "m/B/0": [1] * 70 + [0] * 30}
    table = assess([{}, {"id": "never", "first": "D", "family": "controls"}], rows)
    shown = tables.claims(table, "toy")
    assert shown["verdict"].tolist() == ["supported", "not run"]
    assert re.fullmatch(r"\+50\.0 \[\+\d\d\.\d, \+\d\d\.\d\] points", shown["for the claim"][0])
    assert [*shown.loc[1, ["for the claim", "items", "detectable"]]] == ["", "", ""]
    assert "model" not in shown.columns  # there is one
    assert tables.claims(table, "toy", "controls")["verdict"].tolist() == ["not run"]
    assert [tables.as_p(p) for p in (np.nan, 2e-4, 0.0312)] == ["", "< 0.001", "0.031"]
    # The same rows speak against the claim that B is worse.
    worse = tables.claims(assess([{"direction": "less"}], rows), "toy")
    assert worse["verdict"].tolist() == ["contradicted"]
    ends = re.fullmatch(
        r"\N{MINUS SIGN}50\.0 \[\N{MINUS SIGN}(\d\d\.\d), \N{MINUS SIGN}(\d\d\.\d)\] points",
        worse["for the claim"][0],
    )
    assert ends
    assert float(ends[1]) > 50 > float(ends[2])


def test_a_table_of_claims_fits_a_page(assess: Any) -> None:
    """What is compared stands below the claim; a number of seeds that all share, above all."""
    rows = {f"m/{v}/{s}": [1] * 20 + [0] * 80 for v in "AB" for s in (0, 1)}
    table = assess([{}, {"id": "more"}], {**rows, "n/A/0": [1] * 100, "n/B/0": [0] * 100})
    both = tables.assessed(table, "toy", "primary", links=True).splitlines()
    assert both[0] == f"**{tables.WORDS['primary'].capitalize()}**", "seeds differ"
    heads = [head.strip() for head in both[2].strip("|").split("|")]
    expected = ["claim", "verdict", "for the claim", "model", "detectable", "items"]
    assert heads == [*expected, "p, corrected"]
    beneath = [re.findall(r"; (\w+ training seeds?) <span", line) for line in both[4:]]
    assert sorted(beneath) == [["one training seed"]] * 2 + [["two training seeds"]] * 2
    links = [re.findall(r'id="claim-([\w-]+)"', line) for line in both[4:]]
    assert sorted(filter(None, links)) == [[table["id"][0]], ["more"]], "an address each"
    assert all("{term}`" in line for line in both[4:])
    one = tables.assessed(table[table["model"] == "m"], "toy", "primary")
    assert "(two training seeds)" in one.splitlines()[0]
    assert "training seeds <" not in one
    assert "{term}" not in one
    row = table.iloc[0]
    told = f"{row['first']} against {row['second']}: {tables.word('toy', row['estimand'])}; "
    assert f'<span class="beneath">{told}' in one


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ((1,), "one training seed"),
        ((), "no training seeds"),
        ((3,), "three training seeds"),
        ((1, 2), "one or two training seeds"),
        ((2, 4, 1), "one to 4 training seeds"),
    ],
)
def test_unequal_numbers_of_seeds_are_told_by_both_ends(seeds: tuple[int, ...], told: str) -> None:
    assert tables.trained(*seeds) == told


def test_recorded_verdicts_are_those_of_todays_runs(
    assess: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    home = tmp_path / "toy" / "small"
    home.parent.mkdir()
    home.symlink_to(tmp_path / "home")
    rows = {"m/A/0": [1] * 20 + [0] * 80, "m/B/0": [1] * 70 + [0] * 30}
    fresh = assess([{}], rows)
    assert not claims.current("toy")
    claims.record("toy")
    assert claims.current("toy")
    with monkeypatch.context() as patch:  # nothing is worked out again
        patch.setattr(claims, "tested", None)
        claims._recorded.cache_clear()
        kept = claims.recorded("toy")
    told = [key for key in claims.COLUMNS if key != "run"]
    pd.testing.assert_frame_equal(kept[told], fresh[told], check_dtype=False)
    assert not claims.fault("toy")
    path, sound = home / claims.RECORD, (home / claims.RECORD).read_text()
    for doctored in (
        sound.replace('"supported"', '"contradicted"'),
        sound.replace('"p": 0.0', '"p": 0.3'),
    ):
        assert doctored != sound
        path.write_text(doctored)
        claims._recorded.cache_clear()
        assert claims.fault("toy") == "not those that the records give"
    path.write_text(sound)
    claims._recorded.cache_clear()
    assess([{}], {"m/B/0": [1] * 10 + [0] * 90})  # another run takes the place of one
    assert not claims.current("toy")
    assert claims.recorded("toy")["verdict"].tolist() == ["contradicted"]


@pytest.mark.parametrize("name", config.studies())
def test_what_is_claimed_was_written_down(name: str) -> None:
    """Primary claims are the abstract's, and the reference tests most of what is claimed."""
    told = claims.declared(name)
    assert {claim.source for claim in told if claim.family == "primary"} == {"abstract"}
    found = claims.recorded(name)
    assert {*found["id"]} == {claim.id for claim in told}
    tested = found[found["verdict"] != "not run"]
    # Of larger models few variants are run.
    some = tested["id"].nunique() / found["id"].nunique()
    assert some > 0.75, "a misspelt variant would never be run"
    assert (tested.loc[tested["low"].isna(), "verdict"] == "inconclusive").all()
    tested = tested.dropna(subset="low")
    assert (tested["low"] <= tested["difference"] + 1e-9).all()
    assert (tested["high"] >= tested["difference"] - 1e-9).all()
    assert (tested["high"] > tested["low"]).all(), "no interval has the width zero"
    assert (tested["holm"] >= tested["p"] - 1e-12).all()


@pytest.mark.parametrize("name", config.studies())
def test_no_two_rows_of_a_page_say_the_same(name: str) -> None:
    """Claims that share a sentence differ in what a reader sees: the measure, or the data."""
    for told in (tables.verdicts(name, brief=True), tables.verdicts(name)):
        for part in re.split(r"\n\n(?=\*\*)", told):
            heads, _, *rows = [line for line in part.splitlines() if line.startswith("|")]
            outcome = {"verdict", "for the claim", "detectable", "items", "seeds", "p, corrected"}
            columns = [cell.strip() not in outcome for cell in heads.split("|")]
            shown = [
                tuple(itertools.compress(re.sub(r"<a .*?</a>", "", row).split("|"), columns))
                for row in rows
            ]
            assert len(set(shown)) == len(shown), part[:60]
            first = [row[1] for row in shown]  # all that a phone shows of a row
            assert len(set(first)) == len(first), part[:60]
