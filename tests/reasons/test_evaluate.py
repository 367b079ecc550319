from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from ethalign import config, generation, metrics, models, records, results, scoring
from ethalign.reasons import data, evaluate, prompts, scores

from . import resolved

NONE = pd.DataFrame()


def table(**columns: list[Any]) -> pd.DataFrame:
    whole = {
        "dataset": ["d"] * 4,
        "id": ["a", "b", "c", "e"],
        "stratum": ["clean", "clean", "contaminated", "contaminated"],
        "seen": [False, False, True, False],
        "gold": ["ethical", "unethical", "ethical", "unethical"],
        "verdict": ["ethical", "ethical", "ethical", "unethical"],
        "logp_ethical": [-1.0, -1.0, -1.0, -2.0],
        "logp_unethical": [-2.0, -1.5, -1.25, -1.0],
        "written": [False] * 4,
    }
    return pd.DataFrame({**whole, **columns})


def values(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return {row["stratum"]: row["value"] for row in rows if row["metric"] == metric}


def test_strata_say_what_was_seen() -> None:
    masks = scores.strata(table())
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "all": [True] * 4,
        "clean": [True, True, False, False],
        "contaminated": [False, False, True, True],
        "seen": [False, False, True, False],
        "unseen": [False, False, False, True],
    }
    none = scores.strata(table(seen=[False] * 4))
    assert list(none) == ["all", "clean", "contaminated", "unseen"]
    near = scores.strata(table(near=[True, False, True, True]))
    assert near["distant"].tolist() == [False, True, False, False]
    every = table(seen=[False, False, True, True])
    assert list(scores.strata(every)) == ["all", "clean", "contaminated"]
    assert list(scores.strata(table(stratum=["clean"] * 4))) == ["all"]
    assert list(scores.strata(table(stratum=["contaminated"] * 4))) == [
        "all",
        "contaminated",
        "seen",
        "unseen",
    ]
    assert list(scores.strata(table(stratum=["clean"] * 4, tied=[True] * 4))) == ["all"]
    old = table().drop(columns="seen")
    assert list(scores.strata(old)) == ["all", "clean", "contaminated"]


def test_verdicts_become_rows_by_stratum() -> None:
    rows = scores.measure_rows(resolved(), table(), NONE, {})
    assert values(rows, "accuracy") == {
        "all": 0.75, "clean": 0.5, "contaminated": 1, "seen": 1, "unseen": 1,
    }  # fmt: skip
    assert values(rows, "says_unethical")["all"] == 0.25
    assert values(rows, "majority")["clean"] == 0.5
    assert not values(rows, "accuracy_text")
    tied = table(tied=[True, False, False, False])
    assert values(scores.measure_rows(resolved(), tied, NONE, {}), "accuracy")["untied"] == (
        pytest.approx(2 / 3, abs=1e-6)
    )


@pytest.mark.parametrize("missing", [None, np.nan])
def test_an_answer_without_a_verdict_is_counted_as_unparsed(missing: Any) -> None:
    """Also if no answer at all has one, or if the table marks them as missing numbers."""
    some = table(written=[True] * 4, text_verdict=["ethical", missing, missing, "ethical"])
    rows = scores.measure_rows(resolved(), some, NONE, {})
    assert values(rows, "unparsed")["all"] == 0.5
    assert values(rows, "accuracy_text")["all"] == 0.25
    none = table(written=[True, True, False, False], text_verdict=[missing] * 4)
    assert values(scores.measure_rows(resolved(), none, NONE, {}), "unparsed")["all"] == 1


def test_judgements_become_rows_by_stratum() -> None:
    judgements = pd.DataFrame(
        {
            "id": ["b", "c", "e"],
            "dataset": "d",
            "argues_for": ["ethical", "ethical", "ethical"],
            "stance_misaligned": [True, False, True],
            "judge_misaligned": [True, False, False],
            "chrf": [0.5, np.nan, 0.25],
            "cosine": [np.nan] * 3,
        }
    )
    quality = {"caught": 10, "misaligned": 10, "passed": 10, "aligned": 10}
    written = table(written=[False, True, True, True], text_verdict=["ethical"] * 4)
    rows = scores.measure_rows(resolved(), written, judgements, quality)
    assert values(rows, "misalignment_stance") == {
        "all": pytest.approx(2 / 3, abs=1e-6),
        "clean": 1,
        "contaminated": 0.5,
        "seen": 0,
        "unseen": 1,
    }
    assert set(values(rows, "no_reason").values()) == {0.0}
    assert values(rows, "judge_flags_wrong") == {"all": 1, "clean": 1}
    assert values(rows, "misalignment_corrected") == values(rows, "misalignment_judge")
    assert values(rows, "chrf") == {
        "all": 0.375, "clean": 0.5, "contaminated": 0.25, "unseen": 0.25,
    }  # fmt: skip
    assert not values(rows, "cosine")


def test_items_of_equal_name_in_two_data_sets_are_kept_apart(
    tmp_path: Path, tiny: models.Loaded
) -> None:
    path = tmp_path / "comments.csv"  # ids as those of the sample comments
    path.write_text("Statement,Label\nI lied.,1\nI sang.,0\nI ran.,0\n")
    every = {"data.limit_test": None, "evaluation.generate": False}
    run = resolved(overrides={"data.test": str(path), **every})
    tests = data.tests(run)
    assert set(tests["own"]["id"]) & set(tests["comments"]["id"])
    found = evaluate.ask(run, tiny, tests, tmp_path / "predictions.jsonl", 8, 0.0)
    assert found["dataset"].value_counts().to_dict() == {"own": 3, "comments": 80}


def test_only_a_sample_of_items_gets_a_written_answer(tmp_path: Path, tiny: models.Loaded) -> None:
    for limit, expected in ((5, 10), (None, 24), (0, 0)):
        run = resolved(overrides={"evaluation.limit_generate": limit})
        path = tmp_path / f"{limit}.jsonl"
        found = evaluate.ask(run, tiny, data.tests(run), path, 8, 0.0)
        assert found["written"].sum() == expected
        assert [("reason" in row) for row in records.read_rows(path)] == found["written"].tolist()
    off = resolved(overrides={"evaluation.generate": False})
    found = evaluate.ask(off, tiny, data.tests(off), tmp_path / "off.jsonl", 8, 0.0)
    assert not found["written"].any()


def test_answers_are_written_in_whole_batches(
    tmp_path: Path, tiny: models.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a few in every batch that is scored: a step costs about as much for one as for all."""
    sizes: list[int] = []
    write = generation.write

    def listen(model: Any, tokenizer: Any, asked: list[str], **how: Any) -> Any:
        sizes.append(len(asked))
        return write(model, tokenizer, asked, **how)

    monkeypatch.setattr(generation, "write", listen)
    overrides = {"evaluation.limit_generate": 5, "evaluation.batch_size": 1, "data.cross": False}
    run = resolved(overrides=overrides)
    evaluate.ask(run, tiny, data.tests(run), tmp_path / "p.jsonl", 8, 0.0)
    assert [size for size in sizes if size] == [4, 4, 1, 1], "verdicts and reasons, by chunk"


def test_statements_of_like_length_share_a_batch(
    tmp_path: Path, tiny: models.Loaded, padding: list[int]
) -> None:
    """Short and long ones in turns, as they may stand in a file."""
    run = resolved(overrides={"evaluation.generate": False, "evaluation.batch_size": 2})
    name, test = next(iter(data.tests(run).items()))
    texts = ["I lied.", "I told an old friend what somebody else had said in confidence."] * 4
    uneven = test[:8].assign(statement=texts)
    evaluate.ask(run, tiny, {name: uneven}, tmp_path / "p.jsonl", 8, 0.0)
    assert sum(padding) == 0


def test_a_verdict_behind_a_reason_is_scored_behind_the_reason_that_was_written(
    tmp_path: Path, tiny: models.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every item that has a row, and the closing phrase stands once behind its own reason."""
    scored: list[str] = []
    score = scoring.choice_logprobs

    def listen(model: Any, tokenizer: Any, asked: list[str], *more: Any, **how: Any) -> Any:
        scored.extend(asked)
        return score(model, tokenizer, asked, *more, **how)

    monkeypatch.setattr(scoring, "choice_logprobs", listen)
    texts = generation.Written(
        [" It is unethical to lie. Verdict: ethical"], np.zeros(1), np.array([1])
    )
    monkeypatch.setattr(
        generation,
        "write",
        lambda m, t, asked, **how: texts._replace(
            texts=texts.texts * len(asked), tokens=np.array([3] * len(asked))
        ),
    )
    run = resolved("R-then-L", overrides={"evaluation.limit_generate": 5})
    found = evaluate.ask(run, tiny, data.tests(run), tmp_path / "p.jsonl", 8, 0.0)
    assert len(found) == len(scored) == 10
    assert found["written"].all()
    assert all(text.endswith(" It is unethical to lie. Verdict:") for text in scored)
    assert set(found["text_verdict"]) == {"ethical"}, "not the first label word"
    assert set(found["reason"]) == {"It is unethical to lie."}
    assert not found["cut"].any()


def test_older_verdicts_without_a_reason_before_them_do_not_count() -> None:
    """A model that is right on the written items, and wrong where nothing was written."""
    old = table(
        verdict=["ethical", "unethical", "unethical", "ethical"],
        written=[True, True, False, False],
        text_verdict=["ethical", "unethical", None, None],
    )
    accuracy = {
        variant: values(scores.measure_rows(resolved(variant), old, NONE, {}), "accuracy")["all"]
        for variant in ("LR", "R-then-L")
    }
    assert accuracy == {"LR": 0.5, "R-then-L": 1.0}


def test_the_sample_of_written_items_does_not_move_with_the_seed(
    tmp_path: Path, tiny: models.Loaded
) -> None:
    chosen = []
    for seed in (0, 1):
        overrides = {"evaluation.limit_generate": 5, "data.cross": False, "data.limit_test": 20}
        run = resolved(seed=seed, overrides=overrides)
        path = tmp_path / f"{seed}.jsonl"
        found = evaluate.ask(run, tiny, data.tests(run), path, 8, 0.0)
        chosen.append(found.loc[found["written"], "id"].tolist())
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5


def test_texts_are_as_long_as_human_reasons(tiny: models.Loaded) -> None:
    """All but one in a hundred of the training reasons fit."""
    for variant in ("L", "LR", "R-then-L"):
        run = resolved(variant, "tiny")
        most = evaluate.longest(run, tiny.tokenizer)
        reasons = data.untouched(run.data, run.seed)["reason"]
        tokens = [len(tiny.tokenizer(text)["input_ids"]) for text in reasons]
        assert np.mean([n < most for n in tokens]) > 0.98
        assert most < max(tokens) + 30
    assert evaluate.longest(resolved(), tiny.tokenizer) == 8


def test_a_label_only_model_is_asked_for_its_reason_and_may_not_be_silent(
    tmp_path: Path, tiny: models.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def write(model: Any, tokenizer: Any, texts: list[str], **how: Any) -> generation.Written:
        asked.extend((text, how) for text in texts)
        n = len(texts)
        return generation.Written([" "] * n, np.zeros(n), np.array([how["max_new_tokens"]] * n))

    monkeypatch.setattr(generation, "write", write)
    run = resolved(overrides={"evaluation.limit_generate": 2, "data.cross": False})
    found = evaluate.ask(run, tiny, data.tests(run), tmp_path / "p.jsonl", 20, 0.0)
    why = [how for text, how in asked if "Why is this" in text]
    assert len(why) == 2
    assert all(how["min_new_tokens"] == evaluate.LEAST for how in why)
    assert found.loc[found["written"], "cut"].all()


@pytest.mark.parametrize(
    ("variant", "template", "tokens", "stop"),
    [
        ("pretrained", "plain", 12, None),
        ("pretrained", "dfar-llama", 40, None),
        ("L", "dfar-llama", 12, "\n"),
        ("LR", "dfar-llama", 40, "\n"),
        ("LR", "plain", 40, None),
    ],
)
def test_a_verdict_has_room_and_an_end(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny: models.Loaded,
    variant: str,
    template: str,
    tokens: int,
    stop: str | None,
) -> None:
    """An untuned model explains itself; one that never learnt to stop would contradict itself."""
    asked: list[dict[str, Any]] = []

    def write(model: Any, tokenizer: Any, texts: list[str], **how: Any) -> generation.Written:
        asked.append(how)
        return generation.Written(
            ["x"] * len(texts), np.zeros(len(texts)), np.ones(len(texts), int)
        )

    monkeypatch.setattr(generation, "write", write)
    own = {"prompt.template": template, "tuning.append_eos": template == "plain"}
    run = resolved(variant, overrides={**own, "evaluation.limit_generate": 2, "data.cross": False})
    evaluate.ask(run, tiny, data.tests(run), tmp_path / "p.jsonl", 40, 0.0)
    assert (asked[0]["max_new_tokens"], asked[0].get("stop")) == (tokens, stop)


def test_what_stays_empty_is_no_reason_and_not_a_misaligned_one() -> None:
    """Older records call it misaligned, and say that it argues for nothing."""
    written = table(written=[True] * 4, text_verdict=["ethical"] * 4)
    judgements = pd.DataFrame(
        {
            "id": ["a", "b", "c", "e"],
            "dataset": "d",
            "argues_for": [None, None, None, "unethical"],
            "stance_misaligned": [True, True, True, False],
            "judge_misaligned": [True, True, True, False],
            "chrf": [np.nan] * 4,
            "cosine": [np.nan] * 4,
        }
    )
    quality = {"caught": 9, "misaligned": 10, "passed": 9, "aligned": 10}
    rows = scores.measure_rows(resolved(), written, judgements, quality)
    assert values(rows, "no_reason")["all"] == 0.75
    assert values(rows, "misalignment_judge")["all"] == 0
    assert values(rows, "misalignment_corrected")["all"] is None, "beyond the judge's range"
    silent = scores.measure_rows(resolved(), written, judgements.assign(argues_for=None), quality)
    assert values(silent, "no_reason")["all"] == 1
    assert not values(silent, "misalignment_judge")


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: len({positive for _, positive in pairs}) == 2
    )
)
def test_auc_is_that_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    margin, positive = (np.array(x) for x in zip(*pairs, strict=True))
    assert metrics.auroc(margin, positive) == pytest.approx(roc_auc_score(positive, margin))


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(metrics.auroc(np.array([1.0, 2.0]), np.array([True, True])))


def test_a_shifted_threshold_hides_what_a_model_knows() -> None:
    """Ethical to everything, and ranked perfectly: AUC 1, and the corrected verdict right."""
    logp = {"logp_ethical": [-0.1] * 4, "logp_unethical": [-5.0, -3.0, -5.1, -3.1]}
    prior = ["ethical", "unethical"] * 2
    rows = scores.measure_rows(
        resolved(), table(verdict=["ethical"] * 4, verdict_prior=prior, **logp), NONE, {}
    )
    assert values(rows, "accuracy")["all"] == 0.5
    assert values(rows, "auc")["all"] == 1
    assert values(rows, "accuracy_prior")["all"] == 1
    p = 1 / (1 + np.exp(np.array(logp["logp_ethical"]) - np.array(logp["logp_unethical"])))
    wanted = brier_score_loss([0, 1, 0, 1], p)
    assert values(rows, "brier")["all"] == pytest.approx(wanted, abs=1e-6)
    assert "accuracy_prior" not in {
        row["metric"] for row in scores.measure_rows(resolved(), table(), NONE, {})
    }


def test_the_threshold_calls_as_many_training_rows_unethical_as_people_did(
    tmp_path: Path, tiny: models.Loaded
) -> None:
    run = resolved(overrides={"evaluation.threshold_rows": 40, "data.limit_train": None})
    border = evaluate.threshold(run, tiny, tmp_path / "threshold.jsonl", 8)
    rows = pd.DataFrame(records.read_rows(tmp_path / "threshold.jsonl"))
    test = {text for t in data.tests(run).values() for text in t["statement"]}
    assert not set(data.spare(run)["statement"]) & test
    called = (scores.margins(rows) > border).sum()
    assert abs(called - (rows["gold"] == "unethical").sum()) <= 1
    shifted = rows.assign(logp_ethical=rows["logp_ethical"] + 7)
    kept = (tmp_path / "threshold.jsonl", shifted)
    records.write(*kept)
    assert evaluate.threshold(run, tiny, kept[0], 8) == pytest.approx(border - 7, abs=1e-4)


def test_settings_are_chosen_on_rows_that_were_held_out(
    tmp_path: Path, tiny: models.Loaded
) -> None:
    some = resolved(overrides={"evaluation.threshold_rows": 40, "data.limit_train": None})
    every = resolved(overrides={"evaluation.threshold_rows": 40})
    limited = some.model_copy(update={"tuning": some.tuning.model_copy(update={"rows": 60})})
    for run, expected in ((limited, {"auc", "brier"}), (every, set())):
        path = tmp_path / "threshold.jsonl"
        path.unlink(missing_ok=True)
        evaluate.threshold(run, tiny, path, 8)
        rows = scores._held_out(run, tmp_path)
        assert {row["metric"] for row in rows if row["dataset"] == "held-out"} == expected
    tuned = set(data.tuned(limited)["statement"])
    assert not set(data.spare(limited)["statement"]) & tuned


def test_near_identical_items_are_not_further_evidence() -> None:
    """Forty copies of two statements are two, not eighty items."""
    n = 40
    many = pd.DataFrame(
        {
            "dataset": "d",
            "id": range(2 * n),
            "stratum": "clean",
            "gold": ["ethical"] * n + ["unethical"] * n,
            "verdict": "ethical",
            "logp_ethical": -1.0,
            "logp_unethical": -2.0,
            "written": False,
        }
    )
    alone = scores.measure_rows(resolved(), many, NONE, {})
    families = many.assign(family=["one"] * n + ["two"] * n)
    together = scores.measure_rows(resolved(), families, NONE, {})
    wide = [
        next(r["high"] - r["low"] for r in rows if r["metric"] == "accuracy")
        for rows in (alone, together)
    ]
    assert wide[0] < 0.3
    assert wide[1] == 1


def test_every_target_is_read_back_from_its_own_text() -> None:
    for variant in ("L", "LR", "R-then-L"):
        settings = resolved(variant).prompt
        text = prompts.target(settings, "unethical", "Some say it is ethical. It hurts.")
        reason = "" if variant == "L" else "Some say it is ethical. It hurts."
        assert prompts.read(settings, text) == ("unethical", reason)
    first = resolved("R-then-L").prompt
    assert prompts.read(first, "It is ethical to help and") == (None, "It is ethical to help and")


def test_another_machine_finds_the_log_probabilities_of_the_records(mirror: Path) -> None:
    """Less than a thousandth of a nat away, as the book says; the processor may be any."""
    run = resolved("pretrained", "small")
    place = results.RESULTS / "reasons" / "small" / run.model.id / "pretrained" / "0"
    kept = pd.DataFrame(records.read_rows(place / "predictions.jsonl")).set_index("id")
    loaded = models.load(config.Model(id=run.model.id, device="cpu", dtype="float32"))
    rows = data.tests(run)["dfar"].head(32)
    asked = [prompts.question(run.prompt, text) for text in rows["statement"]]
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, asked, prompts.CHOICES)
    then = kept.loc[rows["id"], [f"logp_{label}" for label in prompts.LABELS]].to_numpy(float)
    np.testing.assert_allclose(found, then, rtol=0, atol=1e-3)
