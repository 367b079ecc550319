import io
import tarfile

import pytest

from ethalign import data, honesty, sources
from ethalign.config import UserError


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
def test_the_published_files_hold_what_is_known_of_them(mirror, name, split, n):
    frame = data.load(name, split)
    assert len(frame) == n
    assert frame["id"].is_unique
    assert frame["question"].str.strip().ne("").all()
    assert frame.attrs["dataset"] == name
    assert len(frame.attrs["sha256"]) == 64
    numbers = frame["answers"].map(len)
    assert (numbers == 0).all() if name == "puqa" else (numbers > 0).all()


def test_aliases_are_parsed_whole(mirror):
    frame = data.load("triviaqa", "train")
    assert frame["answers"].map(len).mean() == pytest.approx(14.0, abs=1.0)
    assert all(isinstance(a, str) and a for row in frame["answers"] for a in row)


def test_options_of_mmlu_belong_to_their_letters(mirror):
    frame = data.load("mmlu")
    assert frame["subject"].nunique() == 57
    for row in frame.sample(50, random_state=0).to_dict("records"):
        assert row["answers"] == [row["options"]["ABCD".index(row["letter"])]]


def test_titles_of_papers_do_not_count_as_refusals(mirror):
    for row in data.load("puqa").head(200).to_dict("records"):
        assert honesty.categorize(row["question"], row["question"], row["answers"]) == "wrong"


def test_a_row_that_is_no_question_is_named(tmp_path, monkeypatch):
    path = tmp_path / "triviaqa" / "topics.dpr.trivia.dev.txt"
    path.parent.mkdir()
    path.write_text("Who?\t['x']\nWhat?\tnot a list\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    known = sources.SOURCES["triviaqa-train"]._replace(sha256=sources.sha256(path))
    monkeypatch.setitem(sources.SOURCES, "triviaqa-train", known)
    with pytest.raises(UserError, match="row 2"):
        data.load("triviaqa", "train")


def test_a_folder_is_taken_out_of_an_archive_and_checked_as_a_whole(tmp_path, monkeypatch):
    files = {"data/test/one_test.csv": b"Q?,a,b,c,d,B\n", "data/val/one_val.csv": b"x\n"}
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "one_test.csv").write_bytes(files["data/test/one_test.csv"])
    known = sources.SOURCES["mmlu-test"]
    good = known._replace(sha256=sources.folder_sha256(tmp_path / "same"))
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: str(tmp_path / "data.tar"))
    monkeypatch.setitem(sources.SOURCES, "mmlu-test", good)
    frame = data.load("mmlu")
    assert frame[["question", "letter", "subject"]].to_numpy().tolist() == [["Q?", "B", "one"]]
    assert frame["answers"].tolist() == [["b"]]
    (tmp_path / "cache" / "data" / known.mirror / "two_test.csv").write_text("more")
    with pytest.raises(UserError, match="expected"):
        data.load("mmlu")
