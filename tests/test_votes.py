import hashlib
import io
import json
import math
import tarfile

import numpy as np
import pandas as pd
import pytest

from ethalign import ambiguity, calibration, config, data, records, sources, votes
from ethalign.config import UserError


def study(variant="hard", scale="smoke", **overrides):
    return config.load(
        "ambiguity", variant, scale, 0, {k.replace("__", "."): v for k, v in overrides.items()}
    )


def test_the_published_files_hold_what_is_known_of_them(mirror):
    dev, test = (data.load("dilemmas", split) for split in ("dev", "test"))
    assert (len(dev), len(test)) == (2340, 2360)
    patterns = pd.Series(votes.strata(dev)).value_counts()
    assert patterns.to_dict() == {"unanimous": 794, "4-1": 794, "3-2": 752}
    assert (pd.Series(votes.strata(test)) != "unanimous").sum() == 1580
    gold = votes.counts(dev).argmax(1)
    assert np.bincount(gold).tolist() == [1211, 1129]
    assert np.bincount(votes.counts(test).argmax(1)).tolist() == [1225, 1135]
    reduced = data.load("dilemmas-disagreement", "train")
    assert len(reduced) == 23596
    assert set(reduced["minority"]) == {0, 1, 2}


def test_anecdotes_are_binarised_as_published(mirror):
    five = data.load("anecdotes-votes", "dev")
    assert five[list(votes.FIVE)].to_numpy().sum() == 52433
    right = votes.counts(five).argmax(1) == 0
    assert (right.sum(), (~right).sum()) == (1985, 515)
    assert (five["votes1"] == five["votes2"]).sum() == 42
    excerpt = data.load("anecdotes", "excerpt")
    gold = votes.counts(excerpt).argmax(1)
    assert np.bincount(gold).tolist() == [33, 27]


@pytest.mark.parametrize("source", ["sample", "official"])
def test_the_parts_of_a_run_share_no_action(source, request):
    if source == "official":
        request.getfixturevalue("mirror")
    rows = votes.splits(study(scale="tiny", data__source=source, tuning__rows=None))
    held = [set(part["action1"]) | set(part["action2"]) for part in rows]
    assert all(len(part) for part in rows)
    for a in range(3):
        for b in range(a):
            assert not held[a] & held[b]
    if source == "official":
        lost = 2340 - len(rows.train) - len(rows.held_out)
        assert lost <= 20, "hardly a row is lost to keep the parts apart"


def test_the_samples_are_as_large_as_their_datasheets_say():
    for name, least in (("dilemmas", 160), ("anecdotes", 60)):
        frames = [data.load(name, split, "sample") for split in ("train", "test")]
        assert sum(map(len, frames)) >= least
        assert frames[0].attrs["dataset"] == f"sample-{name}"
        sheet = (data.SAMPLES / f"{name}.md").read_text()
        assert "illustrative" in sheet


def archive(path, name, lines):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with tarfile.open(path, "w:gz") as tar:
        for member in (f"dilemmas/{name}", "dilemmas/README.md"):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return content


def item(gold, label, number=0):
    return {
        "id": f"item{number}",
        "actions": [{"id": "a", "description": "x"}, {"id": "b", "description": "y"}],
        "gold_annotations": gold,
        "gold_label": label,
    }


def test_the_large_file_is_taken_from_its_archive_and_checked(tmp_path, monkeypatch):
    """An archive of the official form; its training file is known by git's hash only."""
    name = "train.scruples-dilemmas.jsonl"
    content = archive(tmp_path / "dilemmas.tar.gz", name, [item([4, 1], 0), item([0, 5], 1, 1)])
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: str(tmp_path / "dilemmas.tar.gz"))
    known = sources.SOURCES["dilemmas-train"]
    assert known.sha256.startswith("git:")
    with pytest.raises(UserError, match="expected"):
        data.load("dilemmas", "train")
    monkeypatch.setitem(
        sources.SOURCES, "dilemmas-train", known._replace(sha256=f"git:{blob[:8]}")
    )
    frame = data.load("dilemmas", "train")
    assert votes.counts(frame).tolist() == [[4, 1], [0, 5]]


def test_git_knows_its_own_hash(tmp_path):
    (tmp_path / "file").write_bytes(b"hello\n")
    assert sources.git_blob(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_label_that_its_votes_do_not_bear_out_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "scruples" / "dilemmas" / "dev.scruples-dilemmas.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(item([4, 1], 1)) + "\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    known = sources.SOURCES["dilemmas-dev"]._replace(sha256=sources.sha256(path))
    monkeypatch.setitem(sources.SOURCES, "dilemmas-dev", known)
    with pytest.raises(UserError, match="line 1: the label"):
        data.load("dilemmas", "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("lying,stealing,-1,5", "no vote count"),
        ("lying,stealing,1.5,5", "no vote count"),
        ("lying,stealing,many,5", "no vote count"),
        ("lying,lying ,4,1", "both actions are the same"),
        ("lying,,4,1", "the cell is empty"),
    ],
)
def test_a_row_that_is_no_dilemma_is_named(tmp_path, row, message):
    good = "action1,action2,votes1,votes2\nlying,helping,4,1\n"
    (tmp_path / "bad.csv").write_text(good + row + "\n")
    (tmp_path / "good.csv").write_text(good)
    paths = {"data__train": str(tmp_path / "bad.csv"), "data__test": str(tmp_path / "good.csv")}
    with pytest.raises(UserError, match=message):
        votes.splits(study(**paths))


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [("dilemmas", "dev", "sample"), ("anecdotes", "all", "official"), ("dilemmas", "test", "web")],
)
def test_an_unknown_split_names_the_known_ones(name, split, source):
    with pytest.raises(UserError, match=r"split|source"):
        data.load(name, split, source)


def test_a_parameter_of_another_study_is_refused():
    with pytest.raises(UserError, match="belongs to the study ambiguity"):
        config.load("reasons", "L", overrides={"votes.target": "soft"})


def rows(*pairs):
    table = [{"first": "a", "second": "b", "votes1": x, "votes2": y} for x, y in pairs]
    return pd.DataFrame(table)


def test_hard_targets_follow_the_majority_in_both_orders():
    frame = rows((5, 0), (5, 0), (1, 4), (1, 4))
    even, odd = (votes.examples(study("hard"), frame, epoch) for epoch in (0, 1))
    assert [e.completion for e in even] == [" first", " second", " second", " first"]
    assert [e.completion for e in odd] == [" second", " first", " first", " second"]
    assert "First: b" in even[1].prompt, "every other row is swapped"


def test_soft_targets_weigh_both_answers_with_their_shares():
    learnt = votes.examples(study("soft"), rows((4, 1), (5, 0)), 0)
    # The second row is swapped: its five votes are for the action that now stands second.
    assert [(e.completion, e.weight) for e in learnt] == [
        (" first", 0.8),
        (" second", pytest.approx(0.2)),
        (" second", 1.0),
    ]


def test_sampled_targets_are_drawn_anew_and_by_the_votes():
    frame = rows(*[(4, 1)] * 400)
    drawn = [votes.examples(study("sampled"), frame, epoch) for epoch in (0, 0, 2)]
    texts = [[e.completion for e in d] for d in drawn]
    assert texts[0] == texts[1] != texts[2]
    first = np.mean([t == " first" for t in texts[0][::2]])
    assert 0.7 < first < 0.9, "rows that are not swapped"


def test_verbalised_targets_name_the_share():
    learnt = votes.examples(study("verbalised"), rows((4, 1), (4, 1), (5, 0)), 0)
    assert [e.completion for e in learnt] == [" 80 %", " 20 %", " 100 %"]


def test_a_long_story_is_cut_by_words():
    assert votes.cut("a b c", 3) == "a b c"
    assert votes.cut("a b c d", 3) == "a b c …"


@pytest.mark.parametrize("answers", ["words", "letters", "yes-no"])
@pytest.mark.parametrize("dataset", ["dilemmas", "anecdotes"])
def test_every_form_of_answer_can_be_asked_and_scored(tiny, tmp_path, answers, dataset):
    run = study("zero-shot", votes__answers=answers, votes__dataset=dataset)
    found = votes.splits(run)
    parts = {"held-out": found.held_out, "test": found.test}
    predictions = ambiguity.predict(run, tiny, parts, tmp_path / "p.jsonl", fresh=True)
    assert len(predictions) == sum(map(len, parts.values()))
    p = ambiguity.probabilities(predictions)
    np.testing.assert_allclose(p.sum(1), 1)
    assert ("swapped1" in predictions) == (dataset == "dilemmas")
    metrics, _ = ambiguity.summarise(run, predictions)
    values = {(r["metric"], r["stratum"]): r["value"] for r in metrics}
    assert values["cross_entropy", "all"] > 0
    assert 0 <= values["answer_mass", "all"] < 1


def test_mass_is_summed_over_spellings(tiny):
    """Against a plain computation of every spelling's probability."""
    from ethalign import scoring

    run = study("zero-shot")
    asked = ["Which one?\nAnswer:", "Another question, longer.\nAnswer:"]
    found = ambiguity.answer_logprobs(run, tiny, asked)
    texts = [" first", " First", "first", "First"]
    each = np.exp(scoring.choice_logprobs(tiny.model, tiny.tokenizer, asked, texts))
    np.testing.assert_allclose(np.exp(found[:, 0]), each.sum(1), rtol=1e-5)


def test_swapping_a_pair_swaps_its_numbers(tiny, tmp_path):
    run = study("zero-shot")
    test = votes.splits(run).test
    turned = test.rename(columns={"first": "second", "second": "first"})
    turned.attrs = test.attrs
    one = ambiguity.predict(run, tiny, {"test": test}, tmp_path / "1.jsonl", fresh=True)
    two = ambiguity.predict(run, tiny, {"test": turned}, tmp_path / "2.jsonl", fresh=True)
    np.testing.assert_allclose(one["logp1"], two["swapped2"], atol=1e-4)
    np.testing.assert_allclose(
        ambiguity.probabilities(one), ambiguity.probabilities(two)[:, ::-1], atol=1e-4
    )


def test_interrupted_scoring_resumes_without_losing_or_repeating(tiny, tmp_path, monkeypatch):
    run = study("zero-shot")
    found = votes.splits(run)
    parts = {"held-out": found.held_out, "test": found.test}
    whole = ambiguity.predict(run, tiny, parts, tmp_path / "whole.jsonl", fresh=True)
    path = tmp_path / "cut.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])  # torn in the middle of a row
    asked = []
    real = ambiguity._ask
    monkeypatch.setattr(
        ambiguity, "_ask", lambda *a: asked.extend(a[3]["id"].tolist()) or real(*a)
    )
    again = ambiguity.predict(run, tiny, parts, path, fresh=False)
    assert again["id"].is_unique
    assert len(asked) < len(whole)
    keys = ["part", "id"]
    pd.testing.assert_frame_equal(
        again.sort_values(keys).reset_index(drop=True),
        whole.sort_values(keys).reset_index(drop=True),
    )


def test_a_perfect_predictor_gets_perfect_scores():
    run = study("ceiling")
    table = pd.DataFrame({"dataset": "x", "votes1": [5, 0, 5], "votes2": [0, 5, 0]})
    table["stratum"] = votes.strata(table)
    p = calibration.shares(votes.counts(table))
    rows = {r["metric"]: r["value"] for r in ambiguity.score_rows(run, "oracle", table, p)}
    assert rows["accuracy"] == rows["macro_f1"] == 1
    assert rows["cross_entropy"] == rows["brier"] == rows["calibration_error"] == 0


def test_an_item_nobody_voted_on_is_left_out_of_the_scores():
    run = study("ceiling")
    table = pd.DataFrame({"dataset": "x", "votes1": [5, 0], "votes2": [0, 0]})
    table["stratum"] = votes.strata(table)
    rows = ambiguity.score_rows(run, "uniform", table, np.full((2, 2), 0.5))
    assert {r["n"] for r in rows} == {1}
    assert all(math.isfinite(r["value"]) for r in rows)


def test_an_encoder_that_ranks_does_not_care_for_order():
    from ethalign import encoders, models

    path = models.encoder("random-tiny", 0)
    counts = np.array([[5.0, 0.0], [1.0, 4.0]] * 6)
    one, two = ["theft", "help"] * 6, ["kindness", "a lie"] * 6
    for loss in ambiguity.LOSSES:
        goal = counts.argmax(1) if loss == "hard" else counts
        fitted = encoders.fit(path, one, goal, pairs=two, loss=loss, ranked=True, epochs=1)
        z = encoders.logits(fitted, one, pairs=two, ranked=True)
        turned = encoders.logits(fitted, two, pairs=one, ranked=True)
        np.testing.assert_allclose(z, turned[:, ::-1], atol=1e-5)
    with pytest.raises(ValueError, match="pairs"):
        encoders.fit(path, one, counts, loss="soft", ranked=True)


def test_claims_are_judged_from_predictions(tmp_path):
    """A tuned model that knows the votes beats one that knows nothing; losses fall."""
    random = np.random.default_rng(0)
    for variant, knows in (("zero-shot", 0.0), ("soft", 2.0), ("hard", 0.0)):
        lines = []
        for i in range(200):
            n = int(random.integers(0, 6)) if variant == "" else (i * 7) % 6
            signal = knows * (n - 2.5) / 2.5
            lines.append(
                {"part": "test" if i % 2 else "held-out", "id": str(i), "votes1": n}
                | {"votes2": 5 - n, "logp1": signal - 2, "logp2": -2.0}
            )
        where = tmp_path / variant / "0"
        where.mkdir(parents=True)
        records.write(where / "predictions.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    from ethalign import claims

    found = claims.votes({"here": tmp_path}).set_index("claim")["verdict"]
    assert found["soft improves cross-entropy"] == "holds"
    assert found["hard improves cross-entropy"] == "not shown"


def test_a_search_draws_from_the_space_and_keeps_the_best():
    from ethalign import models

    run = study("ceiling", baselines__encoder_trials=3, data__limit_train=8)
    found = votes.splits(run)
    path = models.encoder("random-tiny", 0)
    chosen = ambiguity.search(run, path, found, "soft").baselines
    assert chosen != run.baselines
    assert 1e-8 <= chosen.encoder_lr <= 1e-2
    assert chosen.encoder_batch_size in [2**k for k in range(3, 11)]
    assert ambiguity.search(run, path, found, "soft").baselines == chosen
