"""What a model knows: greedy answers, samples, and the questions that it writes itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import generation, records
from ethalign.config import UserError
from ethalign.honesty import data, finetune, judges, knowledge, prompts
from ethalign.honesty.settings import Run
from ethalign.honesty.targets import training_target
from ethalign.models import Loaded

from . import resolved

# Letters that a random model's few characters hold now and then.
LETTERS = list("bcdefghjklm")
M = 3


def probing(seed: int = 0, **overrides: Any) -> Run:
    """A run of the knowledge stage in small batches."""
    settings = {"evaluation__batch_size": 3, "honesty__samples": M, "honesty__temperature": 1.0}
    return resolved("knowledge", seed, **{**settings, **overrides})


def pool(n: int = 14) -> pd.DataFrame:
    asked = [f"Question number {k}{'!' * (k % 5)}?" for k in range(n)]
    ids = [f"question-{k:03d}" for k in range(n)]
    return pd.DataFrame({"id": ids, "question": asked, "answers": [LETTERS] * n})


def labelled(known: int, unknown: int) -> pd.DataFrame:
    """Known and unknown rows that alternate as long as there are both."""
    labels = [1, 0] * min(known, unknown) + [int(known > unknown)] * abs(known - unknown)
    frame = pd.DataFrame({"greedy_label": labels})
    return frame.assign(id=[f"q-{k:03d}" for k in range(len(frame))])


@pytest.mark.parametrize(
    ("known", "unknown", "rows", "half"),
    [(20, 20, 10, 5), (20, 20, 11, 5), (3, 40, 10, 3), (40, 2, None, 2), (10, 10, None, 10)],
)
def test_half_is_known_and_the_rarer_half_limits(
    known: int, unknown: int, rows: int | None, half: int
) -> None:
    frame = labelled(known, unknown)
    found = knowledge.balanced(frame, rows, 0)
    assert (len(found), found["greedy_label"].sum()) == (2 * half, half)
    assert found["id"].is_unique
    assert found["id"].tolist() == sorted(found["id"]), "in file order"
    labels = frame.set_index("id")["greedy_label"]
    assert found["greedy_label"].tolist() == labels[found["id"]].tolist()
    assert found.index.tolist() == list(range(len(found)))


@pytest.mark.parametrize("label", [0, 1])
def test_who_knows_nothing_or_everything_is_probed_all_the_same(label: int) -> None:
    frame = labelled(20 * label, 20 * (1 - label))
    found = knowledge.balanced(frame, 6, 0)
    assert 0 < len(found) <= 6
    assert set(found["greedy_label"]) == {label}


def test_which_rows_are_drawn_depends_on_the_seed_alone() -> None:
    frame = labelled(30, 30)
    first, again, other = (
        knowledge.balanced(frame, 10, seed)["id"].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_greedy_answer_is_stored_with_its_label(tiny: Loaded, tmp_path: Path) -> None:
    run, path = probing(), tmp_path / "greedy.jsonl"
    frame = knowledge.greedy(run, tiny, pool(), path, None)
    assert frame["id"].tolist() == pool()["id"].tolist()
    asked = [prompts.question(row, honest=False) for row in pool().to_dict("records")]
    said = generation.generate(
        tiny.model, tiny.tokenizer, asked, max_new_tokens=run.evaluation.max_new_tokens, stop="\n"
    )
    assert frame["greedy_pred_text"].tolist() == [text.strip() for text in said]
    for row in records.read_rows(path):
        right = judges.matches({**row, "answer": row["greedy_pred_text"]})
        assert (row["greedy_label"], row["matched"]) == (int(right), right)
        assert row["answers"] == LETTERS


def told(decide: Callable[[judges.Item], bool]) -> judges.Judge:
    def every(rows: Sequence[judges.Item]) -> list[bool]:
        return [decide(row) for row in rows]

    return judges.Judge(every, every)


def test_what_string_match_misses_another_judge_may_find(tiny: Loaded, tmp_path: Path) -> None:
    odd = told(lambda row: int(row["id"][-1]) % 2 == 1)
    frame = pool().assign(answers=pd.Series([["nobody says this"]] * 14))
    found = knowledge.greedy(probing(), tiny, frame, tmp_path / "greedy.jsonl", odd)
    assert not found["matched"].any()
    assert found["greedy_label"].tolist() == [k % 10 % 2 for k in range(14)]
    never = told(lambda row: False)
    alone, other = (
        knowledge.sample(
            probing(), tiny, pool().assign(greedy_pred_text=""), tmp_path / name, judge
        )
        for name, judge in (("alone", None), ("other", never))
    )
    assert other["sampling_labels"].tolist() == alone["sampling_labels"].tolist()
    assert other["sampling_knowns"].any(), "string match stands"


def probe(
    run: Run, loaded: Loaded, folder: Path, frame: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Greedy answers and samples of the pool, into two files of a folder."""
    folder.mkdir(exist_ok=True)
    frame = pool() if frame is None else frame
    answered = knowledge.greedy(run, loaded, frame, folder / "greedy.jsonl", None)
    return answered, knowledge.sample(run, loaded, answered, folder / "samples.jsonl", None)


def test_samples_are_stored_as_in_the_published_files(tiny: Loaded, tmp_path: Path) -> None:
    answered, frame = probe(probing(), tiny, tmp_path)
    assert frame["id"].tolist() == answered["id"].tolist()
    rows: Any = frame.to_dict("records")
    for row in rows:
        texts, labels = row["sampling_pred_text"], row["sampling_labels"]
        assert len(texts) == len(labels) == M
        assert row["sampling_knowns"] == sum(labels)
        for text, label in zip(texts, labels, strict=True):
            assert label == judges.matches({**row, "answer": text})
        assert {"question", "answers", "greedy_pred_text", "greedy_label"} <= set(row)
    assert set(frame["sampling_knowns"]) >= {0, 1}, "random letters match now and then"
    assert frame.to_dict("records") == records.read_rows(tmp_path / "samples.jsonl")


@pytest.mark.parametrize("name", ["greedy.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_made_up_to_the_same_bytes(
    tiny: Loaded, tmp_path: Path, name: str, share: float
) -> None:
    probe(probing(), tiny, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    _, frame = probe(probing(), tiny, tmp_path)
    assert path.read_bytes() == whole
    assert frame["id"].is_unique


def test_what_is_known_is_not_asked_again(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe(probing(), tiny, tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(knowledge, "reply", refuse)
    for one, two in zip(first, probe(probing(), tiny, tmp_path), strict=True):
        pd.testing.assert_frame_equal(one, two)
    with pytest.raises(AssertionError, match="asked again"):
        probe(probing(), tiny, tmp_path, pool(15))


def test_samples_depend_on_the_seed_alone(tiny: Loaded, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        probe(probing(seed), tiny, tmp_path / name)
    files = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/samples.jsonl")}
    assert files["first"] == files["again"]
    first, other = (records.read_rows(tmp_path / n / "samples.jsonl") for n in ("first", "other"))
    for one, two in zip(first, other, strict=True):
        assert one["greedy_pred_text"] == two["greedy_pred_text"]
        assert one["sampling_pred_text"] != two["sampling_pred_text"]


def test_no_chunk_draws_the_random_numbers_of_another(tiny: Loaded, tmp_path: Path) -> None:
    """The same question in every row: what is drawn differs by the random numbers alone."""
    same = pool().assign(question="What?")
    _, frame = probe(probing(), tiny, tmp_path, same)
    texts = [text for row in frame["sampling_pred_text"] for text in row]
    assert len(texts) == 14 * M
    assert len(set(texts)) == len(texts)


def test_what_fits_the_answer_to_another_question_is_an_accident(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says Nile to whatever it is asked; every second question has that answer."""

    def nile(settings: Any, loaded: Any, asked: list[str], **how: Any) -> generation.Written:
        n = len(asked)
        return generation.Written([" Nile"] * n, np.zeros(n), np.ones(n, int))

    monkeypatch.setattr(knowledge, "reply", nile)
    asked = pool(8).assign(answers=pd.Series([["Nile"], ["Po"]] * 4))
    found = knowledge.greedy(probing(), tiny, asked, tmp_path / "greedy.jsonl", None)
    assert found["accident"].sum() == 4
    right = asked.assign(answers=pd.Series([[f"river {k}"] for k in range(8)]))
    found = knowledge.greedy(probing(), tiny, right, tmp_path / "other.jsonl", None)
    assert not found["accident"].any()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("The Nile.", "nile", True),
        ("It is the Nile", "the nile", True),
        ("Nile", "Po", False),
        ("", "Po", False),
        ("", "", True),
    ],
)
def test_two_answers_are_alike_if_one_holds_the_other(first: str, second: str, same: bool) -> None:
    assert knowledge.alike(first, second) is knowledge.alike(second, first) is same


def test_agreement_of_the_samples_is_a_confidence() -> None:
    """By hand: of two right and two wrong answers three of four pairs are in order."""
    sampled = pd.DataFrame(
        {
            "greedy_label": [1, 1, 0, 0],
            "sampling_labels": [[1, 1], [1, 0], [0, 0], [0, 1]],
            "sampling_knowns": [2, 1, 0, 1],
            "sampling_agrees": [2, 0, 1, 0],
        }
    )
    run = probing(honesty__samples=2)
    rows = knowledge.measure_rows(run, "questions", labelled(2, 2), sampled)
    values = {row["metric"]: (row["value"], row["n"]) for row in rows}
    assert values["consistency_auroc"] == (0.625, 4)
    assert values["known_halves"] == (0.5, 4)
    assert values["known_reliability"][1] == 4
    assert "accident" not in values, "older records lack it"
    older = knowledge.measure_rows(run, "q", labelled(2, 2), sampled[["sampling_knowns"]])
    assert {row["metric"] for row in older} == {
        "known_greedy", "expected_accuracy", "knowns_0", "knowns_1", "knowns_2"
    }  # fmt: skip


WORDS = st.lists(st.text("abcde", min_size=1, max_size=3), max_size=8)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 5 / 6),
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("one two three", "one three", 2 * 2 / 5),
        ("one two", "two one", 1 / 2),
        ("one", "two", 0),
        ("", "", 0),
        ("one", "?!", 0),
    ],
)
def test_rouge_l_by_hand(first: Any, second: Any, expected: float) -> None:
    assert knowledge.rouge_l(first, second) == pytest.approx(expected)


@given(WORDS, WORDS)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(
    first: Any, second: Any
) -> None:
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first):
        for j, two in enumerate(second):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if one == two else longer
    common, lengths = int(table[-1, -1]), len(first) + len(second)
    found = knowledge.rouge_l(" ".join(first), " ".join(second))
    assert found == pytest.approx(2 * common / lengths if common else 0)
    assert found == knowledge.rouge_l(" ".join(second), " ".join(first))
    assert 0 <= found <= 1


@given(WORDS.filter(len))
def test_rouge_l_sees_neither_case_nor_punctuation(words: list[str]) -> None:
    assert knowledge.rouge_l(" ".join(words), ", ".join(words).upper() + "?") == 1


def test_a_question_like_an_earlier_one_is_left_out() -> None:
    asked = ["one two three four?", "One, two, three", "five", "one two six seven", "FIVE."]
    rows = [{"question": text} for text in asked]
    kept = [row["question"] for row in knowledge.unlike(rows, 0.7)]
    assert kept == ["one two three four?", "five", "one two six seven"]
    # What was left out does not keep others out.
    chain = [{"question": q} for q in ("a b c d", "a b c e", "a b f e")]
    assert [r["question"] for r in knowledge.unlike(chain, 0.7)] == ["a b c d", "a b f e"]


WRITTEN = [
    " Which river flows through Egypt?\nA: Nile\nQ: Which",
    " This is not a question.\nA: yes",
    " There is no answer here, is there?\nQ: no",
    " Why not?\nA: so",
    " Who dammed the Nile in Egypt?\nA: Nile",
    " Which town is the largest one?\nA: the one that is the largest",
    " Which is the first of all articles?\nA: The",
    "Which river flows through Egypt, then?\nA: Nile",
    " How many legs do spiders have?\nA: 8.\nQ:",
    " What colour is the sky at noon?\nA: blue",
]


REPLIES = {"river": " It is the Nile.", "spiders": " 8", "sky": " Green"}


@pytest.fixture
def inventive(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A model that writes ``WRITTEN`` and replies as ``REPLIES`` has it; what it was asked."""
    asked: dict[str, list[str]] = {"write": [], "again": []}

    def write(prompts: list[str], samples: int) -> list[str]:
        asked["write"] += prompts
        n = len(prompts) * samples
        return (asked.get("texts", WRITTEN) + [""] * n)[:n]

    def again(prompts: list[str]) -> list[str]:
        asked["again"] += prompts
        return [next(said for word, said in REPLIES.items() if word in p) for p in prompts]

    def reply(settings: Any, loaded: Any, prompts: list[str], **how: Any) -> generation.Written:
        texts = write(prompts, how["samples"]) if "samples" in how else again(prompts)
        return generation.Written(texts, np.zeros(len(texts)), np.ones(len(texts), int))

    monkeypatch.setattr(knowledge, "reply", reply)
    return asked


@pytest.mark.parametrize("tries", [1, 3])
def test_every_step_leaves_out_what_it_should(
    tiny: Loaded, inventive: dict[str, list[str]], tries: int
) -> None:
    run = probing(honesty__own_tries=tries)
    found, funnel = knowledge.invent(run, tiny, None)
    assert [row["left"] for row in funnel] == [len(knowledge.TOPICS) * tries, 7, 4, 3, 2]
    assert found["question"].tolist() == [
        "Which river flows through Egypt?",
        "How many legs do spiders have?",
    ]
    assert found["answers"].tolist() == [["Nile"], ["8"]]
    assert found["greedy_pred_text"].tolist() == ["It is the Nile.", "8"]
    assert found["topic"].tolist() == [knowledge.TOPICS[0], knowledge.TOPICS[8 // tries]]
    assert found["id"].is_unique
    assert len(inventive["write"]) == len(knowledge.TOPICS)
    for topic, prompt in zip(knowledge.TOPICS, inventive["write"], strict=True):
        assert f"about {topic}," in prompt
        assert prompt.endswith("\nQ:")
    assert "Q: Which river flows through Egypt?\nA:" in inventive["again"], "the plain prompt"


def test_a_judge_may_only_take_away_from_what_was_said_twice(
    tiny: Loaded, inventive: dict[str, list[str]]
) -> None:
    seen: list[judges.Item] = []

    def true(rows: Sequence[judges.Item]) -> list[bool]:
        seen.extend(rows)
        return ["spiders" not in row["question"] for row in rows]

    judge = judges.Judge(told(lambda row: True).right, true)
    found, funnel = knowledge.invent(probing(), tiny, judge)
    assert found["answers"].tolist() == [["Nile"]]
    assert funnel[-1] == {"step": "true, says the judge", "left": 1}
    assert [row["answer"] for row in seen] == ["It is the Nile.", "8"], "what was said twice"


def test_no_more_is_kept_than_asked_for_and_nothing_if_nothing_is_written(
    tiny: Loaded, inventive: dict[str, list[str]]
) -> None:
    found, _ = knowledge.invent(probing(honesty__own_questions=1), tiny, None)
    assert len(found) == 1
    found, _ = knowledge.invent(probing(honesty__own_questions=0), tiny, None)
    assert len(found) == 0
    inventive.update(texts=[], again=[])
    found, funnel = knowledge.invent(probing(), tiny, None)
    assert len(found) == 0
    assert [row["left"] for row in funnel][1:] == [0, 0, 0, 0]
    assert not inventive["again"]


def test_a_random_model_writes_no_questions(tiny: Loaded) -> None:
    found, funnel = knowledge.invent(probing(honesty__own_tries=1), tiny, None)
    left = [row["left"] for row in funnel]
    assert left == sorted(left, reverse=True)
    assert len(found) == left[-1] == 0


def known_counts(counts: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = [f"question-{k:03d}" for k in range(len(counts))]
    sampled = pd.DataFrame({"id": ids, "sampling_knowns": counts})
    return labelled(3, 7).assign(id=[f"question-{k:03d}" for k in range(10)]), sampled


@given(st.lists(st.integers(0, M), min_size=1, max_size=12))
def test_the_shares_of_right_samples_sum_to_one(counts: list[int]) -> None:
    rows = knowledge.measure_rows(probing(), "questions", *known_counts(counts))
    values = {row["metric"]: row for row in rows}
    shares = [values[f"knowns_{k}"]["value"] for k in range(M + 1)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares[0] == pytest.approx(counts.count(0) / len(counts), abs=1e-6)
    mean = values["expected_accuracy"]["value"]
    assert mean == pytest.approx(np.mean(counts) / M, abs=1e-6)
    assert mean == pytest.approx(sum(k / M * s for k, s in enumerate(shares)), abs=1e-5)
    assert (values["known_greedy"]["value"], values["known_greedy"]["n"]) == (0.3, 10)
    assert {(row["variant"], row["dataset"]) for row in rows} == {("knowledge", "questions")}


def published(**changes: Any) -> dict[str, Any]:
    """A row as the authors publish it."""
    row = {"question": "Who?", "gold_answer": "Ann", "greedy_pred_text": "Ann.",
           "greedy_label": "known", "sampling_pred_text": ["Ann", "Bee"],
           "sampling_labels": ["known", "unknown"], "sampling_knowns": 1}  # fmt: skip
    return {**row, **changes}


def test_probes_that_others_made_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probes.jsonl"
    other = published(question="What?", greedy_label="unknown", answers=["it", "this"])
    records.write(path, "".join(map(records.line, [published(), other])))
    monkeypatch.setattr("ethalign.models.load", None)
    run = resolved("knowledge", honesty__probes=str(path), honesty__samples=10)
    (tmp_path / "where").mkdir()
    assert knowledge.compute(run, tmp_path / "where", {})["answers"] == 0
    rows = records.read_rows(tmp_path / "where" / "knowledge.jsonl")
    assert [r["greedy_label"] for r in rows] == [1, 0]
    assert [r["answers"] for r in rows] == [["Ann"], ["it", "this"]]
    assert all(r["sampling_labels"] == [1, 0] and r["sampling_knowns"] == 1 for r in rows)
    found = {r["metric"]: r["value"] for r in knowledge.measure(run, tmp_path / "where", {})}
    assert (found["expected_accuracy"], found["knowns_1"]) == (0.5, 1), "of their two samples"
    assert training_target("absolute", rows[0]) == "Ann."
    broken = {k: v for k, v in published().items() if k != "sampling_labels"}
    records.write(path, records.line(broken))
    with pytest.raises(UserError, match=r"row 1 has no field 'sampling_labels'"):
        data.probes(run)
    with pytest.raises(UserError, match=r"no\.jsonl is missing"):
        data.probes(resolved("knowledge", honesty__probes=str(tmp_path / "no.jsonl")))


def test_questions_with_options_can_be_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = data.table("options", source="sample").head(3)
    monkeypatch.setattr(data, "mixed", lambda run: options)
    run = probing(honesty__mix=True, honesty__pool=4, honesty__own_tries=1)
    notes = knowledge.compute(run, tmp_path, {})["notes"]
    wanted = f"of the {run.tuning.rows} rows asked for: as many known as unknown"
    assert wanted in notes[-1], "a pool of four questions has fewer, and that is said"
    rows = records.read_rows(tmp_path / "knowledge.jsonl")
    assert {r["id"] for r in rows if "options" in r} == {*options["id"]}
    assert len(rows) > 3
    kinds = [e.prompt for e in finetune.examples(resolved("absolute"), rows, None)]
    assert sum("\nA) " in prompt for prompt in kinds) == 3
