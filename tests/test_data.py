import io
import tarfile

import pandas as pd
import pytest

from ethalign import config, data, sources
from ethalign.config import Columns, UserError


def test_samples_have_the_promised_shape():
    train, test = (data.load("dfar", split, "sample") for split in ("train", "test"))
    assert len(train) + len(test) >= 240
    for frame in (train, test):
        assert frame["label"].value_counts().nunique() == 1, "balanced"
        assert frame["statement"].is_unique
        assert (frame["reason"].str.len() > 20).all()
    assert not set(train["statement"]) & set(test["statement"])
    pairs = pd.concat([train.assign(split=0), test.assign(split=1)]).query("pair != ''")
    assert (pairs.groupby("pair")["label"].nunique() == 2).all()
    assert (pairs.groupby("pair")["split"].nunique() == 1).all(), "no pair crosses the split"


def test_sample_comments_have_the_schema_of_ethos():
    comments = data.load("ethos", "test", "sample")
    assert len(comments) >= 60
    assert set(comments["label"]) == {"ethical", "unethical"}
    assert (comments["label"] == "unethical").equals(comments["share"] >= 0.5)


def test_real_dfar_has_the_published_counts(mirror):
    """papers.md 1.2."""
    train, test = data.load("dfar", "train"), data.load("dfar", "test")
    assert (len(train), len(test)) == (4500, 500)
    assert train["label"].value_counts().to_dict() == {"ethical": 2588, "unethical": 1912}
    assert test["label"].value_counts().to_dict() == {"ethical": 298, "unethical": 202}
    assert list(test.columns[:2]) == ["id", "statement"], "the byte order mark is gone"


def test_real_ethos_counts_ties_as_hate(mirror):
    """papers.md part 5: 433 / 565 at >= 0.5, 74 rows exactly at one half."""
    ethos = data.load("ethos")
    assert ethos["label"].value_counts().to_dict() == {"ethical": 565, "unethical": 433}
    assert (ethos["share"] == 0.5).sum() == 74


def test_mending_the_encoding_makes_shared_reasons_identical(mirror):
    """174 of 189 shared reasons are equal byte for byte, all once the encoding is mended."""
    train = data.load("dfar", "train", repair_encoding=True).set_index("statement")["reason"]
    for repair, expected in ((False, 174), (True, 189)):
        test = data.load("dfar", "test", repair_encoding=repair)
        shared = test[test["statement"].isin(train.index)]
        assert (
            shared["reason"].to_numpy() == train[shared["statement"]].to_numpy()
        ).sum() == expected


@pytest.mark.parametrize(
    "text",
    ["plain", "naïve café", "it’s “fine” – yes", "日本語", "a\u00a0b"],  # noqa: RUF001
)
def test_mending_undoes_double_encoding_and_leaves_good_text_alone(text):
    assert data.mend_encoding(text) == text
    if not text.isascii() and text != "日本語":
        broken = "".join(
            bytes([b]).decode("cp1252") if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b)
            for b in text.encode()
        )
        assert data.mend_encoding(broken) == text


@pytest.fixture
def own(tmp_path):
    def write(text, name="own.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_own_table_with_other_names_and_labels(own):
    path = own("text,verdict,because\nI lied.,bad,It deceives.\nI helped.,good,\n")
    frame = data.load(
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
    ],
)
def test_a_table_off_its_schema_is_refused_by_row_and_column(own, text, says):
    with pytest.raises(UserError, match=says):
        data.load(str(own(text)), source="path")


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"Statement,Label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="UTF-8"):
        data.load(str(path), source="path")


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [
        ("dfars", "test", "official"),
        ("dfar", "dev", "official"),
        ("ethos", "train", "official"),
        ("dfar", "test", "cloud"),
        ("justice", "test", "sample"),
    ],
)
def test_unknown_names_are_refused(name, split, source):
    with pytest.raises(UserError):
        data.load(name, split, source)


def test_a_truncated_mirror_file_names_file_and_both_hashes(tmp_path, monkeypatch):
    file = tmp_path / "dfar" / "DFAR_testset.csv"
    file.parent.mkdir()
    file.write_bytes(b"Statement,Label,Reason\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        data.load("dfar", "test")
    message = str(caught.value)
    assert str(file) in message
    assert sources.SOURCES["dfar-test"].sha256 in message
    assert sources.sha256(file) in message


def test_a_missing_mirror_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    with pytest.raises(UserError, match=r"DFAR_testset\.csv is missing"):
        data.load("dfar", "test")


def test_without_network_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path))
    gone = sources.SOURCES["dfar-test"]._replace(url="http://127.0.0.1:9/none.csv")
    monkeypatch.setitem(sources.SOURCES, "dfar-test", gone)
    with pytest.raises(UserError, match="ETHALIGN_MIRROR"):
        data.load("dfar", "test")
    assert not list(tmp_path.rglob("*.csv")), "nothing half-written is left"


def test_a_member_is_taken_out_of_an_archive_and_verified(tmp_path, monkeypatch):
    """The same form as ETHICS' own tar: one archive, many files, one wanted."""
    content = b"label,scenario\n1,I deserve thanks because I helped.\n"
    archive = tmp_path / "ethics.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("ethics/README.txt", "ethics/justice/justice_test.csv"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    import hashlib

    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    good = sources.SOURCES["justice-test"]._replace(
        url=archive.as_uri(), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(sources.SOURCES, "justice-test", good)
    monkeypatch.setattr("pooch.retrieve", lambda url, known, **_: str(archive))
    frame = data.load("justice", "test")
    assert frame["label"].tolist() == ["ethical"], "ETHICS codes 1 = reasonable"
    (tmp_path / "cache" / "data" / good.mirror).write_bytes(b"cut")
    with pytest.raises(UserError, match="expected"):
        data.load("justice", "test")


def test_limits_are_seeded_and_keep_the_order():
    def rows(seed):
        run = config.load("reasons", "L", "tiny", seed, {"data.limit_train": 10})
        return data.splits(run).train["id"].tolist()

    assert rows(0) == rows(0) == sorted(rows(0))
    assert rows(0) != rows(1)


def test_shuffling_permutes_labels_and_nothing_else():
    plain = data.splits(config.load("reasons", "L")).train
    mixed = data.splits(config.load("reasons", "shuffled")).train
    assert plain["statement"].equals(mixed["statement"])
    assert plain["label"].value_counts().equals(mixed["label"].value_counts())
    assert 0.3 < (plain["label"] == mixed["label"]).mean() < 0.7


def test_contaminated_rows_are_marked(own):
    train = own("Statement,Label\nI lied.,1\nI helped.,0\n", "train.csv")
    test = own("Statement,Label\nI lied.,1\nI sang.,0\n", "test.csv")
    run = config.load(
        "reasons",
        "L",
        overrides={"data.train": str(train), "data.test": str(test), "data.cross": False},
    )
    table = data.splits(run).tests["own"]
    assert table["stratum"].tolist() == ["contaminated", "clean"]
    assert table["seen"].tolist() == [True, False]


def test_braces_and_html_in_a_table_stay_text(own):
    path = own('Statement,Label\n"{reason} <script>alert(1)</script> {0}",1\n')
    assert data.load(str(path), source="path")["statement"][0].startswith("{reason} <script>")
