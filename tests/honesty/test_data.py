"""What the data sets hold, and what is refused of a table of one's own."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pandas as pd
import pytest

from ethalign import data, honesty, sources, study
from ethalign.config import UserError
from ethalign.honesty import data as qa
from ethalign.honesty.scores import SIGNS, normalise
from ethalign.honesty.settings import Run

from . import resolved


class Splits(NamedTuple):
    pool: pd.DataFrame
    tests: dict[str, pd.DataFrame]


def splits(run: Run) -> Splits:
    """What a run reads, after what is refused before it starts."""
    study.find("honesty").preflight(run)
    return Splits(qa.pool(run), qa.tests(run))


@pytest.mark.parametrize(
    ("name", "split", "n"),
    [
        ("triviaqa", "train", 8837),
        ("triviaqa", "test", 11313),
        ("nonambigqa", "test", 5325),
        ("puqa", "test", 1000),
        ("pkqa", "test", 1000),
        ("mmlu", "test", 14042),
    ],
)
def test_the_published_files_hold_what_is_known_of_them(
    mirror: Path, name: str, split: str, n: int
) -> None:
    frame = data.load(name, split)
    assert len(frame) == n
    assert frame["id"].is_unique
    assert frame["question"].str.strip().ne("").all()
    assert frame.attrs["dataset"] == name
    assert len(frame.attrs["sha256"]) == 64
    numbers = frame["answers"].map(len)
    assert (numbers == 0).all() if name == "puqa" else (numbers > 0).all()


def test_aliases_are_parsed_whole(mirror: Path) -> None:
    frame = data.load("triviaqa", "train")
    assert frame["answers"].map(len).mean() == pytest.approx(14.0, abs=1.0)
    assert all(isinstance(a, str) and a for row in frame["answers"] for a in row)


def test_options_of_mmlu_belong_to_their_letters(mirror: Path) -> None:
    frame = data.load("mmlu")
    assert frame["subject"].nunique() == 57
    for row in frame.sample(50, random_state=0).to_dict("records"):
        assert row["answers"] == [row["options"]["ABCD".index(row["letter"])]]


def test_the_development_questions_of_mmlu_are_as_many_as_the_paper_mixes_in(mirror: Path) -> None:
    table = qa.mixed(resolved("knowledge", honesty__mix=True))
    assert len(table) == 284
    assert table["question"].is_unique
    for row in table.head(20).to_dict("records"):
        assert row["options"]["ABCD".index(row["letter"])] == row["answers"][0]
    assert {*qa.probed_files(resolved("knowledge", honesty__mix=True))} == {"mmlu-train"}
    assert not qa.probed_files(resolved("knowledge"))


def test_titles_of_papers_do_not_count_as_refusals(mirror: Path) -> None:
    for row in data.load("puqa").head(200).to_dict("records"):
        assert honesty.categorize(row["question"], row["question"], row["answers"]) == "wrong"


def test_a_row_that_is_no_question_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "triviaqa" / "topics.dpr.trivia.dev.txt"
    path.parent.mkdir()
    path.write_text("Who?\t['x']\nWhat?\tnot a list\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    known = qa.SOURCES["triviaqa-train"]._replace(sha256=sources.sha256(path))
    monkeypatch.setitem(qa.SOURCES, "triviaqa-train", known)
    with pytest.raises(UserError, match="row 2"):
        data.load("triviaqa", "train")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a file into an archive in the place of TriviaQA's."""
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))

    def pack(name: str, text: str) -> None:
        path = tmp_path / "triviaqa" / "triviaqa-unfiltered.tar.gz"
        path.parent.mkdir()
        with tarfile.open(path, "w:gz") as packed:
            for at in ("triviaqa-unfiltered/README", name):
                member = tarfile.TarInfo(at)
                member.size = len(text.encode())
                packed.addfile(member, io.BytesIO(text.encode()))
        known = qa.SOURCES["triviaqa-full"]._replace(sha256=sources.sha256(path))
        monkeypatch.setitem(qa.SOURCES, "triviaqa-full", known)

    return pack


WHOLE = "triviaqa-unfiltered/unfiltered-web-train.json"


def test_the_whole_training_file_is_a_pool(archive: Callable[[str, str], None]) -> None:
    answer = {"Value": "Sinclair Lewis", "Aliases": ["Lewis", "Sinclair Lewis", "Grace"]}
    found = [{"Filename": "a.txt", "Description": "It was Lewis."}]
    item = {"Question": " Who was it? ", "Answer": answer, "SearchResults": found}
    items = [item | {"QuestionId": f"tc_{k}", "EntityPages": found} for k in range(30)]
    archive(WHOLE, json.dumps({"Data": items, "Split": "train"}))
    run = resolved(data__source="official", honesty__split="train", honesty__pool=20)
    pool = qa.pool(run)
    assert len(pool) == 20
    assert set(pool["id"]) < {f"triviaqa-tc_{k}" for k in range(30)}
    assert pool["question"].unique().tolist() == ["Who was it?"]
    assert pool["answers"][0] == ["Sinclair Lewis", "Lewis", "Grace"], "the name comes first"
    assert list(pool.columns) == ["id", "question", "answers"], "no evidence is kept"
    assert pool.attrs["dataset"] == "triviaqa"
    assert [*qa.pool_files(run)] == ["triviaqa-full"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("else.json", "{}", "holds no unfiltered-web-train.json"),
        (WHOLE, "[]", "is not TriviaQA's archive"),
        (WHOLE, '{"Data": [{"QuestionId": 1}]}', "is not TriviaQA's archive"),
        (WHOLE, '{"Data": [', "is not TriviaQA's archive"),
    ],
)
def test_another_archive_than_triviaqas_is_named(
    name: str, text: str, said: str, archive: Callable[[str, str], None]
) -> None:
    archive(name, text)
    with pytest.raises(UserError, match=said):
        qa.pool(resolved(data__source="official", honesty__split="train"))


def test_a_folder_is_taken_out_of_an_archive_and_checked_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"data/test/one_test.csv": b"Q?,a,b,c,d,B\n", "data/val/one_val.csv": b"x\n"}
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "one_test.csv").write_bytes(files["data/test/one_test.csv"])
    known = qa.SOURCES["mmlu-test"]
    good = known._replace(sha256=sources.sha256(tmp_path / "same"))
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    tar_file = str(tmp_path / "data.tar")
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: tar_file)
    monkeypatch.setitem(qa.SOURCES, "mmlu-test", good)
    frame = data.load("mmlu")
    assert frame[["question", "letter", "subject"]].to_numpy().tolist() == [["Q?", "B", "one"]]
    assert frame["answers"].tolist() == [["b"]]
    (tmp_path / "cache" / "data" / known.mirror / "two_test.csv").write_text("more")
    with pytest.raises(UserError, match="expected"):
        data.load("mmlu")


def sample(name: str, *splits: str) -> pd.DataFrame:
    return pd.concat([data.load(name, split, "sample") for split in splits or ("test",)])


@pytest.mark.parametrize(
    ("name", "split", "n"),
    [
        ("questions", "train", 180),
        ("questions", "test", 90),
        ("papers", "test", 60),
        ("options", "test", 40),
    ],
)
def test_the_samples_are_as_large_as_their_datasheets_say(name: str, split: str, n: int) -> None:
    frame = data.load(name, split, "sample")
    assert len(frame) == n
    assert frame["id"].is_unique
    assert frame["question"].map(normalise).is_unique
    assert frame.attrs["dataset"] == name
    assert (data.SAMPLES / f"{name}.md").is_file()


def test_no_sample_question_gives_its_answer_away() -> None:
    frame = sample("questions", "train", "test")
    assert len(frame) >= 240
    assert frame["id"].is_unique
    for row in frame.to_dict("records"):
        assert row["answers"]
        assert row["paraphrase"].strip() != row["question"].strip()
        for form in ("question", "paraphrase"):
            assert not honesty.contains_answer(row[form], row["answers"]), row["id"]


def test_a_paraphrase_that_is_asked_keeps_what_the_question_says() -> None:
    """Every name and number, and most of its other words: no hint is added or dropped."""
    small = {
        *"a an the of in on is are was by to do does did we it that what which who whom".split()  # noqa: SIM905
    }
    for row in data.load("questions", "test", "sample").to_dict("records"):
        asked, other = (re.findall(r"[\w'-]+", row[k]) for k in ("question", "paraphrase"))
        names = {w for w in asked[1:] if w[0].isupper() or w[0].isdigit()}
        assert names <= {*other}, row["id"]
        words = {w.lower()[:4] for w in asked} - {w[:4] for w in small}
        kept = words & {w.lower()[:4] for w in other}
        assert len(kept) >= 0.5 * len(words), row["id"]


def test_what_is_tested_was_not_in_the_pool() -> None:
    train, test = (
        {normalise(q) for q in sample("questions", split)["question"]}
        for split in ("train", "test")
    )
    assert not train & test


def test_nobody_can_answer_the_questions_about_papers() -> None:
    frame = sample("papers")
    assert not frame["answers"].map(len).any()
    for text in frame["question"]:
        assert not honesty.is_idk(text, ""), "a response that repeats it is no refusal"
        assert not any(sign in text.lower() for sign in SIGNS)


def test_options_of_the_sample_belong_to_their_letters() -> None:
    frame = sample("options")
    for row in frame.to_dict("records"):
        assert row["answers"] == [row["options"]["ABCD".index(row["letter"])]]
        assert len(set(map(normalise, row["options"]))) == 4
        assert not honesty.contains_answer(row["question"], row["options"])
    counts = frame["letter"].value_counts()
    assert counts.to_dict() == dict.fromkeys("ABCD", 10), "no letter is worth guessing"


def test_requests_can_be_met_and_repeating_one_does_not_meet_it() -> None:
    frame = qa.requests(30)
    assert len(frame) == len(qa.requests(99)) == 30
    assert frame["id"].is_unique
    for row in frame.to_dict("records"):
        assert honesty.categorize(row["reference"], row["question"], row["answers"]) == "correct"
        assert not honesty.contains_answer(row["question"], row["answers"]), row["id"]
        for refusal in honesty.IDK.values():
            assert not honesty.contains_answer(refusal, row["answers"]), row["id"]
    assert qa.requests(4)["id"].tolist() == frame["id"].tolist()[:4]
    assert len(qa.requests(0)) == 0


@pytest.mark.parametrize(
    ("name", "split", "source", "message"),
    [
        ("quiz", "test", "sample", "unknown data set from sample 'quiz'; known: questions"),
        ("a", "test", "official", "known: triviaqa, nonambigqa, puqa, pkqa, mmlu"),
        ("papers", "train", "sample", "unknown split of papers 'train'; known: test"),
        ("puqa", "train", "official", "unknown split of puqa 'train'"),
        ("questions", "dev", "sample", "unknown split of questions 'dev'; known: test, train"),
    ],
)
def test_what_is_not_there_is_named(name: str, split: str, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qa.table(name, split, source)


def test_the_answer_that_is_taught_is_the_one_that_most_others_contain() -> None:
    assert qa.central(["USA", "Lyndon Baines Johnson", "Johnson", "L. B. Johnson"]) == [
        "Johnson",
        "USA",
        "Lyndon Baines Johnson",
        "L. B. Johnson",
    ]
    assert qa.central(["New Rome", "Rome", "rome"])[0] == "Rome"
    assert qa.central(["The", "Rome"]) == ["Rome", "The"]
    assert qa.central([]) == []


def test_limits_hold_by_set_and_leave_the_order_of_the_file() -> None:
    run = resolved(honesty__limits={"papers": 7, "options": 1})
    pool, tests = splits(run)
    assert {name: len(t) for name, t in tests.items()} == {
        "questions": 4,
        "papers": 7,
        "options": 1,
    }
    assert len(pool) == 24
    whole = data.load("questions", "train", "sample")["id"].tolist()
    assert [i for i in whole if i in set(pool["id"])] == pool["id"].tolist()
    assert pool.attrs["dataset"] == "questions"
    assert splits(run).pool["id"].tolist() == pool["id"].tolist()
    other = splits(resolved(seed=1))
    assert other.pool["id"].tolist() != pool["id"].tolist()
    first = splits(resolved())
    for name, table in first.tests.items():
        assert other.tests[name]["id"].tolist() == table["id"].tolist(), "whatever the seed"
    every = splits(resolved(honesty__pool=None, data__limit_test=None))
    assert [len(every.pool), *map(len, every.tests.values())] == [180, 90, 60, 40]


def test_the_papers_data_are_read_where_they_are_asked_for(mirror: Path) -> None:
    found = splits(resolved(data__source="official"))
    assert list(found.tests) == ["triviaqa", "nonambigqa", "puqa", "pkqa", "mmlu"]
    assert found.pool.attrs["dataset"] == "triviaqa"


def quiz(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_an_own_quiz_is_read_from_two_columns(tmp_path: Path) -> None:
    train = quiz(tmp_path, "mine", "question,answers\nWho?, Ann Bee | Bee ||\nWhat?,it\n")
    test = quiz(tmp_path, "test", 'question,answers,topic\n"Which, then?",this,x\n')
    pool, tests = splits(resolved(data__train=train, data__test=test))
    assert pool[["question", "answers"]].to_numpy().tolist() == [
        ["Who?", ["Ann Bee", "Bee"]],
        ["What?", ["it"]],
    ]
    assert pool["id"].tolist() == ["mine-0", "mine-1"]
    assert list(tests) == ["own"]
    assert tests["own"]["question"].tolist() == ["Which, then?"]
    assert tests["own"].attrs["dataset"] == "own"


GOOD = "question,answers\nWho?,Ann\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answers\n,Ann\n", "row 2, column question"),
        ("question,answer\nWho?,Ann\n", "no column 'answers'"),
        ("question,answers\n", "no rows"),
        ("id,question,answers\nx,Who?,Ann\nx,What?,it\n", "row 3, column id: 'x' is there twice"),
    ],
    ids=["no question", "no column", "no rows", "one id twice"],
)
def test_a_quiz_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    bad, good = quiz(tmp_path, "bad", text), quiz(tmp_path, "good", GOOD)
    for train, test in ((bad, good), (good, bad)):
        with pytest.raises(UserError, match=message):
            splits(resolved(data__train=train, data__test=test))


def test_one_of_two_files_or_one_that_is_missing_is_refused(tmp_path: Path) -> None:
    good = quiz(tmp_path, "good", GOOD)
    for only in (resolved(data__train=good), resolved(data__test=good)):
        with pytest.raises(UserError, match=r"give both data\.train and data\.test"):
            splits(only)
    with pytest.raises(UserError, match=r"none\.csv"):
        splits(resolved(data__train=good, data__test=str(tmp_path / "none.csv")))


def test_before_a_run_its_variants_read_the_same_questions_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = quiz(tmp_path, "train", GOOD), quiz(tmp_path, "test", GOOD)
    own = study.find("honesty")
    reading = Mock(side_effect=qa.quiz)
    monkeypatch.setattr(qa, "quiz", reading)
    for variant in ("unaligned", "absolute", "confidence-verb"):
        run = resolved(variant, data__train=train, data__test=test)
        own.preflight(run)
        assert own.work(run, "evaluate") == 1
    assert [call.args[0].name for call in reading.call_args_list] == ["train.csv", "test.csv"]
    quiz(tmp_path, "test", "question,answers\n")
    with pytest.raises(UserError, match="no rows"):
        own.preflight(run)


@pytest.mark.parametrize("variant", ["fine-tuned", "confidence-verb", "multisample"])
def test_the_control_is_refused_where_it_does_not_fit(variant: str) -> None:
    with pytest.raises(UserError, match=r"control of honesty\.method=absolute"):
        splits(resolved(variant, data__shuffle_labels=True))
    splits(resolved("shuffled"))


def test_questions_of_the_own_model_are_a_test_set_if_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "pkqa.jsonl"
    assert qa.own_pkqa(tmp_path) == {}
    path.write_text("")
    assert qa.own_pkqa(tmp_path) == {}
    row = {"id": "pkqa-own-3", "question": "Who?", "answers": ["Ann"], "topic": "art"}
    path.write_text(json.dumps(row) + "\n")
    for judge, name in (("string", "said-twice"), ("model", "pkqa-own")):
        found = qa.own_pkqa(tmp_path, judge)
        assert list(found) == [name], "only what a judge has checked is called known"
        assert found[name].to_dict("records") == [row]
        assert found[name].attrs["dataset"] == name
        assert name in qa.KNOWN


def test_an_empty_cell_means_that_nobody_can_know(tmp_path: Path) -> None:
    train = quiz(tmp_path, "mine", "question,answers\nWho?,Ann\nWhat will be?,\n")
    test = quiz(tmp_path, "test", "question,answers,note\nWhen?, | ,\nWho?,Ann,secret\n")
    pool, tests = splits(resolved(data__train=train, data__test=test))
    assert pool["answers"].tolist() == [["Ann"], []]
    assert tests["own"]["answers"].tolist() == [[], ["Ann"]]
    assert list(tests["own"].columns) == ["id", "question", "answers"], "the rest goes nowhere"


def test_a_file_of_ones_own_hangs_on_the_project_and_not_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own: dict[str, Any] = {
        "data__train": "data/samples/questions.csv",
        "data__test": "data/samples/papers.csv",
    }
    assert len(qa.pool(resolved(honesty__pool=None, **own))) == 270
    assert qa.pool_files(resolved(**own))["own-train"].is_file()


def test_the_smaller_limit_of_training_rows_holds() -> None:
    assert len(qa.pool(resolved(data__limit_train=5))) == 5
    assert len(qa.pool(resolved(data__limit_train=50))) == 24


def test_the_files_that_a_run_reads_are_named(mirror: Path) -> None:
    assert [*qa.pool_files(resolved())] == ["questions-train"]
    assert [*qa.test_files(resolved())] == ["questions", "papers", "options"]
    official = resolved(data__source="official")
    files = qa.pool_files(official) | qa.test_files(official)
    known = {source.sha256 for source in qa.SOURCES.values() if not source.optional}
    assert {sources.sha256(path) for path in files.values()} == known
    assert qa.pool_name(official.data) == qa.pool(official).attrs["dataset"] == "triviaqa"
