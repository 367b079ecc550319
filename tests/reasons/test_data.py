from pathlib import Path
from typing import Protocol

import pandas as pd
import pytest

from ethalign import audit
from ethalign import data as shared
from ethalign.config import UserError
from ethalign.reasons import data
from ethalign.reasons.settings import Columns

from . import resolved


class Write(Protocol):
    """Writes a CSV into a folder of the test."""

    def __call__(self, text: str, name: str = "own.csv") -> Path: ...


def test_samples_have_the_promised_shape() -> None:
    train, test = (shared.load("dfar", split, "sample") for split in ("train", "test"))
    assert len(train) + len(test) >= 240
    for frame in (train, test):
        assert frame["label"].value_counts().nunique() == 1, "balanced"
        assert frame["statement"].is_unique
        assert (frame["reason"].str.len() > 20).all()
    assert not set(train["statement"]) & set(test["statement"])
    pairs = pd.concat([train.assign(split=0), test.assign(split=1)]).query("pair != ''")
    assert (pairs.groupby("pair")["label"].nunique() == 2).all()
    assert (pairs.groupby("pair")["split"].nunique() == 1).all(), "no pair crosses the split"


def test_the_second_sample_is_as_leaky_as_its_datasheet_says() -> None:
    """What a class is to find: copies, copies without a full stop, and rows that are new."""
    whole = {"data.limit_train": 999, "data.limit_test": 999}
    leaky = resolved(overrides={"data.test": "data/samples/statements-b.csv", **whole})
    train, tests = data.training(leaky.data, 0), data.tests(leaky)
    test = tests["own"]
    found = audit.overlap(train, test)
    assert (len(test), found.shared, found.same_label, found.same_reason) == (60, 22, 22, 22)
    clean = test[found.clean].reset_index(drop=True)
    near = audit.near_duplicates(train, clean, threshold=0.9)
    assert len(near) == 4
    assert not any(clean.loc[near["test_index"], "statement"].str.endswith("."))
    assert dict(test.groupby("stratum").size()) == {"clean": 38, "contaminated": 22}
    assert test["label"].value_counts().nunique() == 1, "balanced"


def test_sample_comments_have_the_schema_of_ethos() -> None:
    comments = shared.load("ethos", "test", "sample")
    assert len(comments) >= 60
    assert set(comments["label"]) == {"ethical", "unethical"}
    assert (comments["label"] == "unethical").equals(comments["share"] >= 0.5)


def test_a_split_that_a_data_set_lacks_is_refused() -> None:
    for name, split in (("dfar", "dev"), ("ethos", "train"), ("justice", "dev")):
        with pytest.raises(UserError, match=rf"unknown .* split '{split}'; .*test"):
            shared.load(name, split, "sample")


def test_real_dfar_has_the_published_counts(mirror: Path) -> None:
    """See "The papers, read closely", Beyond Labels, Data."""
    train, test = shared.load("dfar", "train"), shared.load("dfar", "test")
    assert (len(train), len(test)) == (4500, 500)
    assert train["label"].value_counts().to_dict() == {"ethical": 2588, "unethical": 1912}
    assert test["label"].value_counts().to_dict() == {"ethical": 298, "unethical": 202}
    assert list(test.columns[:2]) == ["id", "statement"], "the byte order mark is gone"


def test_real_ethos_counts_ties_as_hate(mirror: Path) -> None:
    """433 / 565 at >= 0.5, 74 rows exactly at one half."""
    ethos = shared.load("ethos")
    assert ethos["label"].value_counts().to_dict() == {"ethical": 565, "unethical": 433}
    assert (ethos["share"] == 0.5).sum() == 74


def test_mending_the_encoding_makes_shared_reasons_identical(mirror: Path) -> None:
    """174 of 189 shared reasons are equal byte for byte, all once the encoding is mended."""
    train = shared.load("dfar", "train", repair_encoding=True).set_index("statement")["reason"]
    for repair, expected in ((False, 174), (True, 189)):
        test = shared.load("dfar", "test", repair_encoding=repair)
        both = test[test["statement"].isin(train.index)]
        assert (both["reason"].to_numpy() == train[both["statement"]].to_numpy()).sum() == expected


@pytest.mark.parametrize(
    "text",
    ["plain", "naïve café", "it’s “fine” – yes", "日本語", "a\u00a0b"],  # noqa: RUF001
)
def test_mending_undoes_double_encoding_and_leaves_good_text_alone(text: str) -> None:
    assert data.mend_encoding(text) == text
    if not text.isascii() and text != "日本語":
        broken = "".join(
            bytes([b]).decode("cp1252") if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b)
            for b in text.encode()
        )
        assert data.mend_encoding(broken) == text


@pytest.fixture
def own(tmp_path: Path) -> Write:
    def write(text: str, name: str = "own.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_own_table_with_other_names_and_labels(own: Write) -> None:
    path = own("text,verdict,because\nI lied.,bad,It deceives.\nI helped.,good,\n")
    frame = shared.load(
        str(path),
        source="path",
        columns=Columns(statement="text", label="verdict", reason="because"),
        labels={"bad": "unethical", "good": "ethical"},
    )
    assert frame["label"].tolist() == ["unethical", "ethical"]
    assert frame["reason"].tolist() == ["It deceives.", ""]
    assert frame.attrs["dataset"] == "own"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Text,Label\nI lied.,1\n", "no column 'Statement'.*Text.*data.columns.statement"),
        ("Statement,Label\nI lied.,2\n", "row 2, label '2'.*data.labels.2"),
        ("Statement,Label\nI helped.,0\n ,1\n", "row 3, column Statement: the cell is empty"),
        ("Statement,Label\n", "no rows"),
        ("", "not a readable CSV"),
        ('Statement,Label\nI, "Goethe", lied.,1\n', "row 2: 4 cells, and the header has 2"),
        ("Statement,Label\nI lied.,1,\nI helped.,0,\n", "row 2: 3 cells, .*header has 2"),
        ("Statement,Label\nI lied.,1\n\nI helped.\n", "row 4: 1 cells, .*header has 2"),
        ("Statement,Label,Label\nI lied.,1,0\n", "more than one column 'Label'"),
        ('Statement,Label\n"I lied.,1\n', "not a readable CSV.*unexpected end"),
        (f"Statement,Label\n{'x' * 40_000},1\n", "row 2, column Statement: .*10,000 char"),
    ],
)
def test_a_table_off_its_schema_is_refused_by_row_and_column(
    own: Write, text: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        shared.load(str(own(text)), source="path")


def test_a_table_with_one_label_is_taken_with_a_warning(
    own: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own("Statement,Label\nI lied.,1\nI stole.,1\n")
    for _ in range(2):
        assert len(shared.load(str(path), source="path")) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"ethalign: warning: {path}: every row is unethical, so there is nothing to tell apart."
    ]


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"Statement,Label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="UTF-8"):
        shared.load(str(path), source="path")


def test_limits_are_seeded_and_keep_the_order() -> None:
    def rows(seed: int) -> list[str]:
        run = resolved("L", "tiny", seed, {"data.limit_train": 10})
        return data.training(run.data, run.seed)["id"].tolist()

    assert rows(0) == rows(0) == sorted(rows(0))
    assert rows(0) != rows(1)


def test_shuffling_permutes_labels_and_nothing_else() -> None:
    runs = (resolved(variant, "tiny") for variant in ("L", "shuffled"))
    plain, mixed = (data.training(run.data, run.seed) for run in runs)
    assert plain["statement"].equals(mixed["statement"])
    assert plain["label"].value_counts().equals(mixed["label"].value_counts())
    assert 0.3 < (plain["label"] == mixed["label"]).mean() < 0.7


def test_statements_that_open_alike_are_a_family() -> None:
    texts = pd.Series(["I am late today.", "i am LATE, today again", "I am late.", "I was here"])
    found = data.families(texts)
    assert found[0] == found[1]
    assert found.nunique() == 3
    assert not found.str.contains("late").any(), "records hold no words"


def test_real_families(mirror: Path) -> None:
    """69 among the 311 clean rows, of which 162 share their opening with no training row."""
    test = data.tests(resolved(scale="small"))["dfar"]
    clean = test[test["stratum"] == "clean"]
    assert (len(clean), clean["family"].nunique(), (~clean["near"]).sum()) == (311, 69, 162)


def test_training_without_the_shared_statements(own: Write) -> None:
    train = own("Statement,Label\nI lied.,1\nI helped.,0\nI sang.,0\n", "train.csv")
    test = own("Statement,Label\nI lied.,1\nI ran.,0\n", "test.csv")
    paths = {"data.train": str(train), "data.test": str(test), "data.cross": False}
    free = resolved("L-leak-free", "tiny", 0, paths)
    assert data.tuned(free)["statement"].tolist() == ["I helped.", "I sang."]
    leaky, clean = (data.tests(r)["own"] for r in (resolved("L", "tiny", 0, paths), free))
    assert leaky["stratum"].tolist() == clean["stratum"].tolist() == ["contaminated", "clean"]
    assert (leaky["seen"].tolist(), clean["seen"].tolist()) == ([True, False], [False, False])
    plain = data.untouched(resolved("shuffled", "tiny", 0, paths).data, 0)
    assert plain[["statement", "label"]].to_numpy().tolist() == [
        ["I helped.", "ethical"],
        ["I sang.", "ethical"],
    ]


def test_contaminated_rows_are_marked(own: Write) -> None:
    train = own("Statement,Label\nI lied.,1\nI helped.,0\n", "train.csv")
    test = own("Statement,Label\nI lied.,1\nI sang.,0\n", "test.csv")
    paths = {"data.train": str(train), "data.test": str(test), "data.cross": False}
    run = resolved("L", "tiny", 0, paths)
    table = data.tests(run)["own"]
    assert table["stratum"].tolist() == ["contaminated", "clean"]
    assert table["seen"].tolist() == [True, False]


def test_braces_and_html_in_a_table_stay_text(own: Write) -> None:
    path = own('Statement,Label\n"{reason} <script>alert(1)</script> {0}",1\n')
    assert shared.load(str(path), source="path")["statement"][0].startswith("{reason} <script>")


def test_ids_of_an_own_table_must_differ(own: Write) -> None:
    named = shared.load(str(own("id,Statement,Label\na,I lied.,1\nb,I sang.,0\n")), source="path")
    assert named["id"].tolist() == ["a", "b"]
    plain = shared.load(str(own("Statement,Label\nI lied.,1\nI sang.,0\n")), source="path")
    assert plain["id"].tolist() == ["own-0", "own-1"]
    with pytest.raises(UserError, match=r"row 3, column id: 'a' is there twice"):
        shared.load(str(own("id,Statement,Label\na,I lied.,1\na,I sang.,0\n")), source="path")


def test_a_relative_path_belongs_to_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    path = "data/samples/statements.csv"
    assert len(shared.load(path, source="path")) == sum(
        len(shared.load("dfar", split, "sample")) for split in ("train", "test")
    )


def test_files_are_those_that_a_run_reads(own: Write) -> None:
    every = ("train", "test", "cross", *data.JUSTICE)
    names = {key: path.name for key, path in data.files(resolved(), *every).items()}
    sample = {"train": "statements.csv", "test": "statements.csv"}
    assert names == {**sample, "cross": "comments.csv"}
    assert data.files(resolved()) == data.files(resolved(), *every)
    path = own("Statement,Label\nI lied.,1\n")
    mine = resolved(overrides={"data.train": str(path), "data.cross": False})
    names = {key: file.name for key, file in data.files(mine, *every).items()}
    assert names == {**sample, "train": "own.csv"}
    assert data.present(mine.data)
    none = mine.data.model_copy(update={"test": str(path.with_name("none.csv"))})
    assert not data.present(none)


def test_official_files_are_named_for_a_run(mirror: Path) -> None:
    run = resolved(scale="small")
    found = data.files(run, "train", "cross", *data.JUSTICE)
    assert {key: path.name for key, path in found.items()} == {
        "train": "DFAR_trainset.csv",
        "cross": "Ethos_Dataset_Binary.csv",
        "justice-train": "justice_train.csv",
        "justice-test": "justice_test.csv",
    }
    assert data.main(run.data) == "dfar"
