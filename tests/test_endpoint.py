"""A model behind a real server on this machine that misbehaves on demand."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command
from servers import STRANGE, Server, serving

from ethalign import (
    calibration,
    config,
    endpoint,
    generation,
    models,
    pipeline,
    records,
    scoring,
    study,
)
from ethalign.ambiguity import data, evaluate
from ethalign.ambiguity.settings import Run
from ethalign.config import UserError

KEY = "sk-very-secret/key"
SECRETS = {"OPENAI_API_KEY": KEY, "DB_PASSWORD": "canary-in-a-mine"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def client(server: Server, **settings: Any) -> endpoint.Client:
    defaults: dict[str, Any] = {"url": server.url, "per_minute": 100_000, "timeout": 30.0}
    return endpoint.Client(config.Endpoint(**(defaults | settings)), "some-model")


def test_listed_tokens_become_answer_masses(server: Server) -> None:
    asking = client(server)
    found = asking.answers(["Which?"], ("first", "second"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.6, 0.3]])
    assert not found.bounded.any()
    assert server.paths == ["/v1/chat/completions"]
    (body,) = server.bodies
    assert (body["model"], body["logprobs"], body["top_logprobs"]) == ("some-model", True, 20)
    assert (body["temperature"], body["max_tokens"]) == (0, 1)
    assert (asking.requests, asking.tokens) == (1, 7)
    nothing = asking.answers([], ("first", "second"))
    assert nothing.logp.shape == (0, 2)
    assert nothing.bounded.shape == (0, 2)
    assert asking.record["served"] == ["some-model-2024 fp_1"], "an alias is not what answers"


def test_an_answer_that_is_not_listed_is_bounded_and_counted(server: Server) -> None:
    server.top = [("first", math.log(0.9)), ("The", math.log(0.06)), ("I", math.log(0.03))]
    found = client(server).answers(["Which?"], ("first", "second"))
    # Left over is 0.01, less than the least probable token listed.
    np.testing.assert_allclose(np.exp(found.logp), [[0.9, 0.01]])
    assert found.bounded.tolist() == [[False, True]]
    server.top = []
    found = client(server).answers(["Which?"], ("first", "second"))
    np.testing.assert_allclose(found.logp, [[0, 0]])
    assert found.bounded.all()
    # What the server rounds to nothing is no measured value either.
    server.top = [("first", -0.1), ("second", -math.inf)]
    assert client(server).answers(["Which?"], ("first", "second")).bounded.tolist() == [[0, 1]]


def test_the_beginning_of_an_answer_counts_unless_it_begins_both(server: Server) -> None:
    server.top = [("un", math.log(0.5)), ("eth", math.log(0.2)), ("", math.log(0.1))]
    found = client(server).answers(["Which?"], ("ethical", "unethical"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.2, 0.5]])
    server.top = [("s", math.log(0.5)), ("same", math.log(0.3)), ("so", math.log(0.1))]
    found = client(server).answers(["Which?"], ("same", "some"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.3, 0.1]])


@pytest.mark.parametrize("logp", [math.nan, 0.1, math.inf, None, "x"])
def test_what_is_no_log_probability_is_no_answer(server: Server, logp: float | str | None) -> None:
    server.top = [("first", -0.5), ("second", logp)]
    with pytest.raises(UserError, match="gave no valid log-probabilities for some-model"):
        client(server).answers(["Which?"], ("first", "second"))


@pytest.mark.parametrize(
    "faults", [[429], [500, 503], ["cut"], ["list"], ["slow"], [429, "cut", 502]]
)
def test_what_passes_is_tried_again(server: Server, faults: list[int | str]) -> None:
    server.script = list(faults)
    asking = client(server, timeout=1.0 if "slow" in faults else 30.0)
    found = asking.answers(["Which?"], ("first", "second"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.6, 0.3]])
    assert len(server.bodies) == asking.requests == len(faults) + 1


def test_the_pause_that_the_server_asks_for_is_kept(server: Server) -> None:
    server.script, server.headers = [429], {"Retry-After": "1"}
    client(server).complete(["a"], 5)
    assert np.diff(server.times)[0] >= 1.0


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        ([429] * 9, r"no answer \(Error code: 429.*run the same command again later", 3),
        ([503] * 9, r"no answer \(Error code: 503.*run the same command again later", 3),
        (["cut"] * 9, r"no answer \(broken JSON\).*run the same command again later", 3),
        (["slow"] * 9, r"no answer \(.*timed out.*run the same command again later", 3),
        ([401], r"no answer \(Error code: 401.*check .* the key in OPENAI_API_KEY", 1),
        ([404], r"no answer \(Error code: 404.*check endpoint\.url, model some-model", 1),
        (["no-logprobs"], "no valid log-probabilities", 1),
        (["null"] * 9, r"no answer \(broken JSON\)", 3),
        (["deep"] * 9, r"no answer \(broken JSON\)", 3),
        (["page"], r"no answer \(what came is not JSON\); check endpoint\.url", 1),
        (["huge"], r"no answer \(it has more than 8,388,608 bytes\); check endpoint\.url", 1),
        (["drip"] * 9, r"no answer \(.*timed out.*run the same command again later", 3),
    ],
)
def test_what_does_not_pass_ends_with_one_sentence(
    server: Server, faults: list[int | str], message: str, requests: int
) -> None:
    server.script = list(faults)
    asking = client(server, retries=2, timeout=0.5 if {"slow", "drip"} & {*faults} else 30.0)
    with pytest.raises(UserError, match=message) as caught:
        asking.answers(["Which?"], ("first", "second"))
    assert len(server.bodies) == asking.requests == requests
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")


def test_a_server_that_is_not_there_is_named() -> None:
    settings = config.Endpoint(url="http://127.0.0.1:9/v1", retries=1)
    asking = endpoint.Client(settings, "m")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1 gave no answer \(.*refused"):
        asking.answers(["Which?"], ("first", "second"))
    assert asking.requests == 2


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.script, server.headers = [307], {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(UserError, match=r"Error code: 307.*check endpoint\.url"):
        client(server).complete(["a"], 5)
    assert len(server.bodies) == 1


def test_requests_keep_their_distance_and_run_together(server: Server) -> None:
    server.delay = 0.5
    start = time.monotonic()
    client(server, per_minute=600, concurrent=3).complete(["a", "b", "c", "d"], 5)
    turns = start + 0.1 * np.arange(4)
    assert (np.sort(server.times) >= turns).all(), "600 a minute are one every tenth of a second"
    assert 1 < server.most <= 3


def test_answers_come_in_the_order_of_the_prompts(server: Server) -> None:
    prompts = [f"prompt {k}" for k in range(12)]
    server.delay = lambda prompt: 0.02 * (12 - int(prompt.split()[1]))
    assert client(server, concurrent=4).complete(prompts, 5) == [p.upper() for p in prompts]
    assert 1 < server.most <= 4


def test_a_failure_ends_what_has_not_begun(server: Server) -> None:
    server.script = [401] * 99
    asking = client(server, concurrent=2)
    with pytest.raises(UserError, match="Error code: 401"):
        asking.complete([str(k) for k in range(60)], 5)
    assert len(server.bodies) < 10
    server.script = []
    assert asking.complete(["again"], 5) == ["AGAIN"]


def test_retries_count_against_the_guard_of_costs(server: Server) -> None:
    server.script = [500] * 9
    asking = client(server, max_requests=3, retries=8)
    with pytest.raises(UserError, match=r"needs 4 requests and endpoint\.max_requests is 3"):
        asking.complete(["a"], 5)
    assert len(server.bodies) == asking.requests == 3


def test_the_key_comes_from_the_environment_and_is_not_recorded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-this-one")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-nor-this-one")
    asking = client(server, key_env="SOME_KEY")
    asking.answers(["Which?"], ("first", "second"))
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in json.dumps([asking.record, asking.notes])
    # A server here that needs no key is not given another one's.
    client(server, key_env="NO_KEY").complete(["a"], 5)
    assert "sk-" not in str(server.keys[1])


@pytest.mark.parametrize("status", [400, 401, 429, 500])
@pytest.mark.parametrize("form", ["Bad key {}\n\x1b[31m!", '{{"error": {{"message": "key {}"}}}}'])
def test_a_key_that_the_server_repeats_is_never_shown(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    status: int,
    form: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", KEY)
    server.script, server.error = [status] * 9, form.format(KEY)
    with pytest.raises(UserError) as caught:
        client(server, key_env="SOME_KEY", retries=1).complete(["a"], 5)
    shown = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert KEY not in shown
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["", "  ", "two keys", "a\nb", "a\x07b", "schlüssel"])
def test_what_is_no_key_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OTHER_KEY", key)
    settings = config.Endpoint(url="https://api.example/v1", key_env="OTHER_KEY")
    with pytest.raises(UserError, match=r"variable OTHER_KEY .*; export your API key") as caught:
        endpoint.Client(settings, "m")
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:hush@api.example/v1",
        "https://hush@api.example/v1",
        "https://api.example/v1?key=hush",
        "https://api.example/v1#hush",
        "https://api.example:hush/v1",
        "api.example/hush",
        "file:///hush",
        "https://api.example/hush \n",
        "https://hush..example/v1",
        "",
    ],
)
def test_an_address_that_could_hold_a_key_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"endpoint\.key_env instead") as caught:
        config.resolve("ambiguity", "zero-shot", "smoke", 0, {"endpoint.url": url})
    assert "hush" not in str(caught.value)


def test_a_key_in_the_place_of_its_variable_is_refused() -> None:
    for key in (KEY, KEY.upper(), "sk_proj_4711", "AKIAIOSFODNN7EXAMPLE"):
        with pytest.raises(UserError, match="environment variable") as caught:
            config.resolve("ambiguity", "zero-shot", "smoke", 0, {"endpoint.key_env": key})
        assert key not in str(caught.value)


def test_a_text_that_repeats_the_key_is_kept_without_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.replies = [f"Your key is {KEY}."]
    assert client(server).complete(["a"], 5) == ["Your key is ***."]


def test_no_message_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_in_the_mine ")
    text = "hf_canary_in_the_mine at https://ann:hush@x.org/v1?api-key=hush&a=b failed"
    assert str(UserError(text)) == "*** at https://***@x.org/v1?api-key=***&a=b failed"
    assert str(UserError("write key=value, not a@b //c")) == "write key=value, not a@b //c"


@pytest.mark.parametrize(
    "url", ["https://api.openai.com/v1", "http://[::1]:8000/v1/", "http://my_box.lan/a-b/v1.0"]
)
def test_plain_addresses_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert endpoint.Client(config.Endpoint(url=url), "m").record["device"] == url


def served(server: Server, **overrides: Any) -> Run:
    settings: dict[str, Any] = {"endpoint.url": server.url, "endpoint.retries": 1}
    settings |= {"endpoint.per_minute": 100_000, "model.id": "some-model"}
    run = config.resolve("ambiguity", "zero-shot", "smoke", 0, settings | overrides)
    assert isinstance(run, Run)
    return run


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(
    server: Server, tmp_path: Path
) -> None:
    run = served(server)
    parts = data.tests(run)
    total = 2 * sum(map(len, parts.values()))
    server.script = [*[None] * 20, *[500] * 99]
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="run the same command again"):
        evaluate.ask(run, evaluate.respondent(run, None), parts, path)
    kept = len(path.read_text().splitlines())
    assert 0 < kept < total / 2
    server.script, server.bodies = [], []
    found = evaluate.ask(run, evaluate.respondent(run, None), parts, path)
    assert len(server.bodies) == total - 2 * kept, "nothing is paid for twice"
    assert found.set_index(["part", "id"]).index.is_unique
    assert len(found) == total / 2
    rows = evaluate.measure_rows(run, run.variant, found)
    assert {r["metric"]: r["value"] for r in rows}["answer_bounded"] == 0


def test_every_answer_is_kept_as_it_comes(server: Server, tmp_path: Path) -> None:
    """A failure in the middle of a batch loses none; half a line is asked for again."""
    run, kept = served(server, **{"endpoint.concurrent": 1}), tmp_path / "answers.jsonl"
    total = 2 * sum(map(len, data.tests(run).values()))
    server.script = [*[None] * 21, *[500] * 99]
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="run the same command again"):
        evaluate.ask(run, evaluate.respondent(run, None, kept), data.tests(run), path)
    assert len(kept.read_text().splitlines()) == 21
    kept.write_text(kept.read_text()[:-9])
    server.script, server.bodies = [], []
    model = evaluate.respondent(run, None, kept)
    found = evaluate.ask(run, model, data.tests(run), path)
    assert len(server.bodies) == total - 20
    assert model.record["served"] == ["some-model-2024 fp_1"]
    fresh = evaluate.ask(run, evaluate.respondent(run, None), data.tests(run), tmp_path / "p")
    assert found.equals(fresh)
    # Another question about the same prompt is another request.
    asking = endpoint.Client(run.endpoint, "some-model", kept)
    for names in (("first", "second"), ("second", "first"), ("first", "second")):
        answer = asking.answers(["Which?"], names)
        assert np.exp(answer.logp[0, names.index("first")]) == pytest.approx(0.6)
    assert asking.requests == 2


def test_a_missing_answer_is_a_bound_and_two_are_no_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served(server, **{"data.limit_test": 4})
    listed = [("first", math.log(0.9)), ("The", math.log(0.06)), ("I", math.log(0.03))]
    tables, path = data.tests(run), tmp_path / "p.jsonl"

    def ask() -> dict[str, Any]:
        path.unlink(missing_ok=True)
        found = evaluate.ask(run, evaluate.respondent(run, None), tables, path)
        rows = evaluate.measure_rows(run, run.variant, found)
        told = {
            r["metric"]: r for r in rows if r["stratum"] == "all" and r["dataset"] != "held-out"
        }
        return told | {"rows": found}

    server.top = listed
    found = ask()
    assert found["rows"]["bounded"].tolist()[0] == ["logp2", "swapped1"]
    assert (found["answer_bounded"]["value"], found["no_answer"]["value"]) == (1, 0)
    # Whatever stands first has 0.9 of 0.91 or more: of both orders half to within 0.006.
    n = data.counts(tables["test"])
    low = calibration.cross_entropy(np.clip(calibration.shares(n), 0.4945, 0.5055), n).mean()
    least, said, most = (
        found[f"cross_entropy{ending}"]["value"] for ending in ("_least", "", "_most")
    )
    assert least == pytest.approx(low, abs=1e-3)
    assert least < said < most < said + 0.02

    lists, answers = iter([listed, [("The", -0.1)]] * 9), endpoint.Client.answers

    def one_list_an_order(self: Any, asked: list[str], names: tuple[str, str]) -> Any:
        server.top = next(lists)
        return answers(self, asked, names)

    monkeypatch.setattr(endpoint.Client, "answers", one_list_an_order)
    model, part = evaluate.respondent(run, None), {"test": tables["test"]}
    silent = evaluate.ask(run, model, part, tmp_path / "q.jsonl")
    assert not evaluate.answered(silent).any()
    assert silent["verdict"].isna().all(), "half an answer is none"
    (row,) = evaluate.measure_rows(run, run.variant, silent)
    assert (row["metric"], row["value"]) == ("no_answer", 1)
    server.top = [("first", -0.5), ("second", -1.0)]
    monkeypatch.undo()
    mixed = pd.concat([silent, ask()["rows"]])
    rows = evaluate.measure_rows(run, run.variant, mixed)
    told = {r["metric"]: r for r in rows if r["stratum"] == "all" and r["dataset"] != "held-out"}
    assert (told["no_answer"]["value"], told["no_answer"]["n"]) == (0.5, 8)
    assert told["accuracy"]["n"] == 4
    assert "cross_entropy_most" not in told


def test_too_many_requests_are_refused_before_the_first(server: Server, tmp_path: Path) -> None:
    run = served(server, **{"endpoint.max_requests": 3})
    with pytest.raises(UserError, match=r"endpoint\.max_requests is 3"):
        evaluate.ask(run, evaluate.respondent(run, None), data.tests(run), tmp_path / "p")
    assert not server.bodies


def test_a_tuned_variant_cannot_be_asked_behind_a_server(server: Server) -> None:
    run = config.resolve("ambiguity", "soft", "smoke", 0, {"endpoint.url": server.url})
    with pytest.raises(UserError, match="--variant zero-shot"):
        study.find("ambiguity").preflight(run)


FAULTS: list[int | str] = [*(400, 401, 403, 429, 500, 307), *STRANGE, "cut", "drip"]
FAULTS += ["no-logprobs", "nan"]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_server_does_no_secret_is_told_or_kept(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: int | str,
) -> None:
    """A whole stage, whose server answers a while, and then repeats what it should not."""
    caplog.set_level(logging.DEBUG)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    server.error, server.fingerprint = f"told {' and '.join(SECRETS.values())}", f"fp {KEY}"
    server.headers["Location"] = f"{server.url}/elsewhere"
    server.script = [*[None] * 9, *[fault] * 99]
    if fault == "nan":
        server.script, server.top = [], [(f"first {KEY}", math.nan)]
    settings = {"endpoint.url": server.url, "endpoint.retries": 0, "endpoint.timeout": 0.5}
    settings |= {"endpoint.per_minute": 100_000, "model.id": "some-model"}
    job = study.job("ambiguity", "evaluate", "zero-shot", "smoke", 0, settings, tmp_path)
    with pytest.raises(UserError) as caught:
        job.compute()
    shown = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert not leaks(tmp_path, shown)
    assert records.stages(job.where)["evaluate"]["status"] == "failed"


def leaks(folder: Path, shown: str) -> list[str]:
    """Where a secret stands: on the screen, or in a file below a folder."""
    texts = {"screen": shown} | {
        str(path): path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
    }
    return [place for place, text in texts.items() if any(s in text for s in SECRETS.values())]


def test_the_whole_evaluation_runs_against_a_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = [f"endpoint.url={server.url}", "model.id=some-model", "endpoint.per_minute=100000"]
    call = ["run", "ambiguity", "--variant", "zero-shot", "--scale", "smoke"]
    # First it is refused, by a server that repeats the key.
    secrets = " and ".join(SECRETS.values())
    server.script, server.error = [401] * 99, json.dumps({"error": {"message": f"Is {secrets}"}})
    server.headers["Content-Type"] = "application/json"
    done = command(*call, "--runs", tmp_path, "--set", *settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Is *** and ***" in done.stderr
    assert not leaks(tmp_path, done.stderr)
    server.script, server.bodies = [429, 500, "cut"], []
    server.fingerprint = f"fp_1 {KEY}"
    done = command(*call, "--runs", tmp_path, "--set", *settings)
    assert done.returncode == 0, done.stderr
    assert not leaks(tmp_path, done.stdout + done.stderr)
    where = tmp_path / "ambiguity" / "smoke" / "some-model" / "zero-shot" / "0"
    record = json.loads((where / "run.json").read_text())
    assert record["stages"]["evaluate"]["model"]["device"] == server.url
    assert record["stages"]["evaluate"]["model"]["served"] == ["some-model-2024 fp_1 ***"]
    assert not (where / "answers.jsonl").exists()
    asked = 2 * len((where / "predictions.jsonl").read_text().splitlines())
    assert len(server.bodies) == 3 + asked


def completing(loaded: models.Loaded) -> Callable[[dict[str, Any]], list[Any]]:
    """What a server such as vLLM makes of a request for completions, in the plainest way."""
    model, tokenizer = loaded.model, loaded.tokenizer

    def logp(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([ids])).logits[0].double()
            return found.log_softmax(-1)

    def told(ids: list[int], values: list[float | None]) -> dict[str, Any]:
        return {"tokens": [tokenizer.decode([i]) for i in ids], "token_logprobs": values}

    def complete(body: dict[str, Any]) -> list[Any]:
        ids, choices = body["prompt"], []
        draws = torch.Generator().manual_seed(body["seed"])
        for _ in range(body.get("n", 1)):
            new: list[int] = []
            values: list[float | None] = []
            while len(new) < body["max_tokens"] and tokenizer.eos_token_id not in new:
                row = logp(ids + new)[-1].clone()
                if len(new) < body.get("min_tokens", 0):
                    row[tokenizer.eos_token_id] = -math.inf
                token = int(row.argmax())
                if body["temperature"]:
                    p = (row / body["temperature"]).softmax(-1)
                    token = int(torch.multinomial(p, 1, generator=draws))
                new.append(token)
                values.append(float(row[token]))
            if body.get("echo"):
                before = logp(ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
                new, values = ids + new, [None, *before, *values]
            text = tokenizer.decode(new, skip_special_tokens=True)
            choices.append({"text": text, "logprobs": told(new, values)})
        return choices

    return complete


@pytest.fixture
def twins(server: Server) -> tuple[models.Loaded, models.Loaded]:
    """A model here, and the same behind a server."""
    settings = config.Model(id="random-tiny", device="cpu", dtype="float32")
    here = models.load(settings)
    server.complete = completing(here)
    address = config.Endpoint(url=server.url, api="completions", per_minute=100_000)
    return here, models.load(settings, server=address)


PROMPTS = ["Lying is", "Is it fair that she waited for him?\nAnswer:", "Lying is"]


def test_choices_behind_a_server_are_as_probable_as_here(
    twins: tuple[models.Loaded, models.Loaded], server: Server
) -> None:
    """Choices of one and of several tokens, each with its own number of tokens."""
    choices = [" ethical", " unethical", " not a matter of ethics at all"]
    here, there = (scoring.choice_logprobs(m.model, m.tokenizer, PROMPTS, choices) for m in twins)
    np.testing.assert_allclose(there, here, atol=1e-5)
    assert {len(scoring.split(twins[0].tokenizer, "x", [c])[1][0]) for c in choices} != {1}
    assert set(server.paths) == {"/v1/completions"}
    # The same tokens, of which another number is the answer.
    pairs = [("Lying is", " bad"), ("Lying", " is bad")]
    told = [
        [scoring.choice_logprobs(m.model, m.tokenizer, [p], [c])[0, 0] for p, c in pairs]
        for m in twins
    ]
    np.testing.assert_allclose(told[1], told[0], atol=1e-5)
    nothing = scoring.choice_logprobs(twins[1].model, twins[1].tokenizer, [], choices)
    assert nothing.shape == (0, 3)


@pytest.mark.parametrize("stop", [None, "e"])
def test_texts_from_a_server_are_those_from_here(
    twins: tuple[models.Loaded, models.Loaded], server: Server, stop: str | None
) -> None:
    how: Any = {"max_new_tokens": 12, "min_new_tokens": 3, "stop": stop}
    here, there = (generation.write(m.model, m.tokenizer, PROMPTS, **how) for m in twins)
    assert there.texts == here.texts
    np.testing.assert_allclose(there.logp, here.logp, atol=1e-5)
    assert there.tokens.tolist() == here.tokens.tolist()
    assert {body["min_tokens"] for body in server.bodies} == {3}
    empty = generation.write(twins[1].model, twins[1].tokenizer, [], **how)
    assert (empty.texts, len(empty.logp), len(empty.tokens)) == ([], 0, 0)


def test_samples_from_a_server_differ_follow_the_seed_and_are_undistorted(
    twins: tuple[models.Loaded, models.Loaded], server: Server
) -> None:
    def sample(seed: int) -> list[str]:
        how: Any = {"max_new_tokens": 6, "temperature": 1.0, "samples": 4, "seed": seed}
        address = cast("endpoint.Served", twins[1].model).settings
        asking = endpoint.Served(address, "random-tiny")
        return generation.write(asking, twins[1].tokenizer, PROMPTS, **how).texts

    first = sample(0)
    assert len(set(first)) == 12, "two prompts that are the same draw apart"
    assert sample(0) == first != sample(1)
    told = ("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    assert {tuple(body[key] for key in told) for body in server.bodies} == {(4, 1, 1, -1, 0, 1)}


@pytest.mark.parametrize(
    "values", [[None, -1.0], [None, math.nan, -1.0], [None, 0.5, -1.0], [], None]
)
def test_what_no_server_of_texts_may_tell_is_refused(
    twins: tuple[models.Loaded, models.Loaded], server: Server, values: list[Any] | None
) -> None:
    server.complete = lambda body: [{"text": "", "logprobs": {"token_logprobs": values}}]
    loaded = twins[1]
    with pytest.raises(UserError, match="gave no log-probabilities of a prompt for random-tiny"):
        scoring.choice_logprobs(loaded.model, loaded.tokenizer, ["Lying is"], [" no"])
    server.complete = lambda body: [
        {"text": "", "logprobs": {"token_logprobs": values, "tokens": ["a"] * len(values or ())}}
    ]
    with pytest.raises(UserError, match="gave no texts with tokens for random-tiny"):
        generation.write(loaded.model, loaded.tokenizer, ["Lying is"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "variant", "files"),
    [
        ("reasons", "pretrained", ["predictions"]),
        ("ambiguity", "zero-shot", ["predictions"]),
        ("honesty", "unaligned", ["predictions", "greedy"]),
    ],
)
def test_a_study_by_a_served_model_has_the_predictions_of_a_local_one(
    twins: tuple[models.Loaded, models.Loaded],
    server: Server,
    tmp_path: Path,
    name: str,
    variant: str,
    files: list[str],
) -> None:
    away = {
        "endpoint.url": server.url,
        "endpoint.api": "completions",
        "endpoint.per_minute": 100_000,
        "endpoint.concurrent": 2,
        # A name that only the server knows: no page may look for it here.
        "model.id": "some-model",
        "model.tokenizer": "random-tiny",
    }
    found: list[dict[str, list[Any]]] = []
    for settings in ({}, away):
        folder = tmp_path / ("served" if settings else "here")
        job = study.job(name, "evaluate", variant, "smoke", 0, settings, folder)
        assert job.compute(make=True) == "anew"
        rows = {p.name: records.read_rows(p) for p in job.where.parents[1].rglob("*.jsonl")}
        found.append(rows)
    here, there = found
    assert server.bodies
    for file in files:
        pairs = zip(here[f"{file}.jsonl"], there[f"{file}.jsonl"], strict=True)
        for one, two in pairs:
            assert one.keys() == two.keys()
            for key, value in one.items():
                close = isinstance(value, float)
                assert two[key] == (pytest.approx(value, abs=2e-4) if close else value), key
    # The pages too, with their lessons on single tokens, whose logits no server shows.
    for one in (*job.before().values(), job):
        values = {"scale": "smoke", "runs": str(folder), "overrides": away}
        values |= {"variant": variant} if one.stage.variant is None else {}
        pipeline.execute(pipeline.notebook_of(one), tmp_path / f"{one.stage.name}.ipynb", values)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("reasons", {"endpoint.api": "completions"}, "cannot be tuned from here"),
        ("honesty", {"endpoint.api": "completions"}, "cannot be tuned from here"),
        ("ambiguity", {"endpoint.api": "completions"}, "cannot be tuned from here"),
        ("reasons", {"tuning.enabled": False}, r"with endpoint\.api=completions alone"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_anything_is_asked(
    server: Server, name: str, settings: dict[str, Any], told: str
) -> None:
    variant = {"reasons": "L", "honesty": "absolute", "ambiguity": "hard"}[name]
    overrides = {"endpoint.url": server.url, **settings}
    run = config.resolve(name, variant, "smoke", overrides=overrides)
    with pytest.raises(UserError, match=told):
        study.find(name).preflight(run)
    assert not server.bodies
