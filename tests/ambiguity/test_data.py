import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ethalign import data as shared
from ethalign import sources
from ethalign.ambiguity import data
from ethalign.ambiguity.study import preflight
from ethalign.config import UserError

from . import resolved


def test_the_published_files_hold_what_is_known_of_them(mirror: Path) -> None:
    dev, test = (shared.load("dilemmas", split) for split in ("dev", "test"))
    assert (len(dev), len(test)) == (2340, 2360)
    patterns = pd.Series(data.strata(dev)).value_counts()
    assert patterns.to_dict() == {"unanimous": 794, "4-1": 794, "3-2": 752}
    assert (pd.Series(data.strata(test)) != "unanimous").sum() == 1580
    assert np.bincount(data.counts(dev).argmax(1)).tolist() == [1211, 1129]
    assert np.bincount(data.counts(test).argmax(1)).tolist() == [1225, 1135]
    assert not {*dev["action1"], *dev["action2"]} & {*test["action1"], *test["action2"]}
    titles = {*dev["first"], *dev["second"]}
    assert (test["first"].isin(titles) | test["second"].isin(titles)).sum() == 18


def test_anecdotes_are_binarised_as_published(mirror: Path) -> None:
    five = shared.load("anecdotes-votes", "dev")
    assert five[list(data.FIVE)].to_numpy().sum() == 52433
    right = data.counts(five).argmax(1) == 0
    assert (right.sum(), (~right).sum()) == (1985, 515)
    assert (five["votes1"] == five["votes2"]).sum() == 42
    excerpt = shared.load("anecdotes", "excerpt")
    assert np.bincount(data.counts(excerpt).argmax(1)).tolist() == [33, 27]


@pytest.mark.parametrize("source", ["sample", "official"])
def test_the_parts_of_a_run_share_no_action(source: str, request: pytest.FixtureRequest) -> None:
    if source == "official":
        request.getfixturevalue("mirror")
    rows = data.splits(resolved(scale="tiny", data__source=source, tuning__rows=None))
    held = [set(part["action1"]) | set(part["action2"]) for part in rows]
    assert all(len(part) for part in rows)
    for a in range(3):
        for b in range(a):
            assert not held[a] & held[b]
    if source == "official":
        lost = 2340 - len(rows.train) - len(rows.held_out)
        assert lost <= 20, "hardly a row is lost to keep the parts apart"


def test_who_trains_on_the_training_file_calibrates_on_the_development_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def table(name: str, split: str, source: str = "official") -> pd.DataFrame:
        sizes = {"train": 30, "dev": 7, "test": 5}
        ids = [f"{split}{k}" for k in range(sizes[split])]
        found = pd.DataFrame({"id": ids, "votes1": 4, "votes2": 1})
        found.loc[0, ["votes1", "votes2"]] = 0
        return found

    monkeypatch.setattr(data, "table", table)
    run = resolved(scale="small", votes__split="train", tuning__rows=None)
    train, held_out, test = data.splits(run)
    assert (len(train), len(held_out), len(test)) == (29, 6, 5), "without what has no votes"
    assert held_out["id"].str.startswith("dev").all()
    assert train["id"].str.startswith("train").all()
    places = dict(data.places(run, "train", "test"))
    assert places["held-out"] == data.SOURCES["dilemmas-dev"]
    assert "held-out" not in dict(data.places(resolved(scale="small"), "train", "test"))


def test_the_excerpt_is_divided_into_all_three_parts(mirror: Path) -> None:
    settings = {"votes__dataset": "anecdotes", "votes__split": "excerpt"}
    rows = data.splits(resolved(scale="small", tuning__rows=None, **settings))
    assert [len(part) for part in rows] == [32, 8, 20]
    assert pd.concat(rows)["id"].is_unique


def test_the_samples_are_as_large_as_their_datasheets_say() -> None:
    for name, least in (("dilemmas", 160), ("anecdotes", 60)):
        frames = [shared.load(name, split, "sample") for split in ("train", "test")]
        assert sum(map(len, frames)) >= least
        assert frames[0].attrs["dataset"] == f"sample-{name}"
        sheet = (shared.SAMPLES / f"{name}.md").read_text()
        assert "illustrative" in sheet


def test_neighbours_are_pairs_that_share_an_action() -> None:
    n = 205
    order = np.random.default_rng(0).permutation(n)
    ring = pd.DataFrame({"action1": order, "action2": (order + 1) % n})
    groups = data.neighbours(ring)
    assert groups is not None
    assert sorted(np.bincount(groups)) == [5, *[10] * 20]
    at = dict(zip(order, groups, strict=True))
    apart = sum(at[k] != at[(k + 1) % n] for k in range(n))
    assert apart <= 23, "as many as there are stretches, and the walk may turn round once"
    few = data.neighbours(ring.head(30))
    assert few is not None
    assert len({*few}) == 30, "too few to make stretches of"
    assert data.neighbours(ring[["action1"]]) is None


def test_records_know_actions_by_their_text_and_keep_none_of_it() -> None:
    frame = pd.DataFrame(
        {"id": ["a", "b"], "first": ["lying ", "helping"], "second": ["helping", "lying"]}
        | {"action1": ["x1", "x2"], "action2": ["x3", "x4"], "votes1": 4, "votes2": 1}
    )
    frame.attrs["dataset"] = "dilemmas"
    one, two = (data.record(item) for item in data.items(frame, "test", "dilemmas"))
    assert (one["action1"], one["action2"]) == (two["action2"], two["action1"])
    assert len({one["action1"], one["action2"]}) == 2
    assert not {"lying", "helping", "x1", "x3"} & {str(v).strip() for v in one.values()}


def archive(path: Path, name: str, lines: list[Any]) -> bytes:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with tarfile.open(path, "w:gz") as tar:
        for member in (f"dilemmas/{name}", "dilemmas/README.md"):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return content


def item(gold: list[int], label: int, number: int = 0) -> dict[str, Any]:
    return {
        "id": f"item{number}",
        "actions": [{"id": "a", "description": "x"}, {"id": "b", "description": "y"}],
        "gold_annotations": gold,
        "gold_label": label,
    }


def test_the_large_file_is_taken_from_its_archive_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of the official form; its training file is known by git's hash only."""
    name = "train.scruples-dilemmas.jsonl"
    packed = tmp_path / "dilemmas.tar.gz"
    content = archive(packed, name, [item([4, 1], 0), item([0, 5], 1, 1)])
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: str(packed))
    known = data.SOURCES["dilemmas-train"]
    assert known.sha256.startswith("git:")
    assert known.optional
    with pytest.raises(UserError, match="expected"):
        data.table("dilemmas", "train")
    found = known._replace(sha256=f"git:{blob[:8]}")
    monkeypatch.setitem(data.SOURCES, "dilemmas-train", found)
    frame = data.table("dilemmas", "train")
    assert data.counts(frame).tolist() == [[4, 1], [0, 5]]


def test_git_knows_its_own_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert sources.git_blob(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_label_that_its_votes_do_not_bear_out_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scruples" / "dilemmas" / "dev.scruples-dilemmas.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(item([4, 1], 1)) + "\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    known = data.SOURCES["dilemmas-dev"]._replace(sha256=sources.sha256(path))
    monkeypatch.setitem(data.SOURCES, "dilemmas-dev", known)
    with pytest.raises(UserError, match="line 1: the label"):
        data.table("dilemmas", "dev")


GOOD = "action1,action2,votes1,votes2\nlying,helping,4,1\nstealing,giving,5,0\n"


def own(folder: Path, train: str = GOOD, test: str = GOOD) -> dict[str, str]:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    return {f"data__{name}": str(folder / f"{name}.csv") for name in ("train", "test")}


def test_pairs_of_ones_own_take_the_place_of_the_source(tmp_path: Path) -> None:
    run = resolved(**own(tmp_path))
    rows = data.splits(run)
    assert rows.test.attrs["dataset"] == "own"
    assert rows.test["id"].tolist() == ["test-0", "test-1"]
    assert (len(rows.train), len(rows.held_out)) == (1, 1)
    assert data.files(run, "train", "test") == {
        name: tmp_path / f"{name}.csv" for name in ("train", "test")
    }
    assert data.remark("own") == ""
    preflight(run)


def test_stories_of_ones_own_take_the_place_of_the_source(tmp_path: Path) -> None:
    table = "title,text,author,other,everybody,nobody,info\n" + "".join(
        f"Story {k},I did it.,{k},1,1,2,9\n" for k in range(4)
    )
    rows = data.splits(resolved(**own(tmp_path, table, table), votes__dataset="anecdotes"))
    assert rows.test["votes1"].tolist() == [3] * 4
    assert rows.test["votes2"].tolist() == [1, 2, 3, 4], "author and everybody; info is dropped"
    assert {item["gold"] for item in data.items(rows.test, "test", "anecdotes")} == {
        "right",
        "wrong",
    }


def test_a_long_chain_of_pairs_is_divided() -> None:
    """Looking at each pair for each other would take hours here."""
    n = 100_000
    pairs = {"action1": [f"a{k}" for k in range(n)], "action2": [f"a{k + 1}" for k in range(n)]}
    first, rest = data.part(pd.DataFrame(pairs), 0.2, 0)
    assert len(first) == n // 5
    assert not {*first["action1"], *first["action2"]} & {*rest["action1"], *rest["action2"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("lying,stealing,-1,5", "is not a vote count"),
        ("lying,stealing,1.5,5", "is not a vote count"),
        ("lying,stealing,many,5", "is not a vote count"),
        ("lying,stealing,1e30,5", "'1e30' is not a vote count"),
        ("lying,stealing,inf,5", "is not a vote count"),
        ("lying,stealing,2,5,", "row 4: 5 cells, and the header has 4"),
        ("lying,lying ,4,1", "both actions are the same"),
        ("lying,,4,1", "the cell is empty"),
    ],
)
def test_a_row_that_is_no_dilemma_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preflight(resolved(**own(tmp_path, train=GOOD + row + "\n")))


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = "id,action1,action2,votes1,votes2\n7,a,b,4,1\n8,a,c,4,1\n7,c,d,4,1\n"
    with pytest.raises(UserError, match=r"test\.csv, row 4, column id: '7' is there twice"):
        preflight(resolved(**own(tmp_path, test=twice)))


def test_files_of_ones_own_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    paths = own(tmp_path)
    with pytest.raises(UserError, match=r"give both data\.train and data\.test"):
        preflight(resolved(data__train=paths["data__train"]))
    with pytest.raises(UserError, match=r"gone\.csv is missing; data\.train and data\.test"):
        preflight(resolved(**{**paths, "data__test": str(tmp_path / "gone.csv")}))
    with pytest.raises(UserError, match=r"train\.csv has no column 'title'"):
        preflight(resolved(**paths, votes__dataset="anecdotes"))
    with pytest.raises(UserError, match=r"votes\.split=excerpt needs votes\.dataset=anecdotes"):
        preflight(resolved(votes__split="excerpt", data__source="official"))


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [("dilemmas", "dev", "sample"), ("anecdotes", "all", "official"), ("dilemmas", "test", "web")],
)
def test_an_unknown_split_names_the_known_ones(name: str, split: str, source: str) -> None:
    with pytest.raises(UserError, match=r"split|source"):
        shared.load(name, split, source)


def test_a_server_is_not_asked_for_written_shares() -> None:
    """It lists the first tokens of answers, and a share is more than one."""
    asked = {"endpoint__url": "http://localhost:1/v1"}
    preflight(resolved("zero-shot", **asked))
    with pytest.raises(UserError, match="asked as it is"):
        preflight(resolved("zero-shot", **asked, votes__target="verbalised"))
