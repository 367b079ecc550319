"""A server that speaks the protocol and misbehaves on demand."""

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import command

from ethalign import ambiguity, config, endpoint, pipeline, votes
from ethalign.config import UserError

GOOD = [("first", math.log(0.6)), (" Second", math.log(0.3)), ("The", math.log(0.05))]


class Server(ThreadingHTTPServer):
    """Answers as ``script`` says, then well; keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.top, self.times = [], [], GOOD, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        self.server.times.append(time.monotonic())
        fault = self.server.script.pop(0) if self.server.script else None
        if fault == "slow":
            time.sleep(1.0)
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(b"no")
            return
        top = [{"token": t, "logprob": p} for t, p in self.server.top]
        logprobs = None if fault == "no-logprobs" else {"content": [{"top_logprobs": top}]}
        reply = {"choices": [{"logprobs": logprobs}], "usage": {"total_tokens": 7}}
        text = json.dumps(reply).encode()
        if fault == "cut":
            text = text[: len(text) // 2]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def client(server, **settings):
    defaults = {"url": server.url, "wait": 0.0, "per_minute": 100_000, "timeout": 0.5}
    return endpoint.Client(config.Endpoint(**(defaults | settings)), "some-model")


def test_listed_tokens_become_answer_masses(server):
    found = client(server).answers(["Which?"], ("first", "second"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.6, 0.3]])
    assert not found.bounded.any()
    path, body, _ = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["logprobs"], body["top_logprobs"]) == ("some-model", True, 20)


def test_an_answer_that_is_not_listed_is_bounded_and_counted(server):
    server.top = [("first", math.log(0.9)), ("The", math.log(0.06)), ("I", math.log(0.03))]
    found = client(server).answers(["Which?"], ("first", "second"))
    # Left over is 0.01, less than the least probable token listed.
    np.testing.assert_allclose(np.exp(found.logp), [[0.9, 0.01]])
    assert found.bounded.all()


def test_the_beginning_of_an_answer_counts_unless_it_begins_both(server):
    server.top = [("un", math.log(0.5)), ("eth", math.log(0.2)), ("", math.log(0.1))]
    found = client(server).answers(["Which?"], ("ethical", "unethical"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.2, 0.5]])
    server.top = [("s", math.log(0.5)), ("same", math.log(0.3)), ("so", math.log(0.1))]
    found = client(server).answers(["Which?"], ("same", "some"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.3, 0.1]])


@pytest.mark.parametrize("faults", [[429], [500, 503], ["cut"], ["slow"], [429, "cut", 502]])
def test_what_passes_is_tried_again(server, faults):
    server.script = list(faults)
    found = client(server).answers(["Which?"], ("first", "second"))
    np.testing.assert_allclose(np.exp(found.logp), [[0.6, 0.3]])
    assert len(server.asked) == len(faults) + 1


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        ([429] * 9, "failed 3 times: status 429", 3),
        (["cut"] * 9, "failed 3 times: JSONDecodeError", 3),
        ([401], "refused with status 401", 1),
        (["no-logprobs"], "no log-probabilities", 1),
    ],
)
def test_what_does_not_pass_ends_with_one_sentence(server, faults, message, requests):
    server.script = list(faults)
    with pytest.raises(UserError, match=message):
        client(server, retries=2).answers(["Which?"], ("first", "second"))
    assert len(server.asked) == requests


def test_a_server_that_is_not_there_is_named():
    settings = config.Endpoint(url="http://127.0.0.1:9/v1", retries=1, wait=0.0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*failed 2 times"):
        endpoint.Client(settings, "m").answers(["Which?"], ("first", "second"))


def test_requests_keep_their_distance(server):
    client(server, per_minute=600).answers(["a", "b", "c"], ("first", "second"))
    gaps = np.diff(server.times)
    assert (gaps > 0.09).all(), "600 a minute are one every tenth of a second"


def test_the_key_comes_from_the_environment_and_is_not_recorded(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    asking = client(server, key_env="SOME_KEY")
    asking.answers(["Which?"], ("first", "second"))
    assert server.asked[0][2] == "Bearer secret"
    assert "secret" not in json.dumps(asking.record)
    with pytest.raises(UserError, match="OTHER_KEY is empty"):
        endpoint.Client(config.Endpoint(url="https://api.example/v1", key_env="OTHER_KEY"), "m")


def study(server, **overrides):
    settings = {"endpoint.url": server.url, "endpoint.wait": 0.0, "endpoint.retries": 1}
    settings |= {"endpoint.per_minute": 100_000, "model.id": "some-model"}
    return config.load("ambiguity", "zero-shot", "smoke", 0, settings | overrides)


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(server, tmp_path):
    run = study(server)
    rows = votes.splits(run)
    parts = {"held-out": rows.held_out, "test": rows.test}
    total = 2 * sum(map(len, parts.values()))
    server.script = [None] * 20 + [500] * 4
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="run the same command again"):
        ambiguity.predict(run, ambiguity.source(run, tmp_path), parts, path, fresh=True)
    kept = len(path.read_text().splitlines())
    assert 0 < kept < total / 2
    server.script, server.asked = [], []
    found = ambiguity.predict(run, ambiguity.source(run, tmp_path), parts, path, fresh=False)
    assert len(server.asked) == total - 2 * kept, "nothing is paid for twice"
    assert found.set_index(["part", "id"]).index.is_unique
    assert len(found) == total / 2
    metrics, _ = ambiguity.summarise(run, found)
    assert {r["metric"]: r["value"] for r in metrics}["answer_bounded"] == 0


def test_too_many_requests_are_refused_before_the_first(server, tmp_path):
    run = study(server, **{"endpoint.max_requests": 3})
    rows = votes.splits(run)
    with pytest.raises(UserError, match=r"endpoint\.max_requests is 3"):
        ambiguity.predict(
            run, ambiguity.source(run, tmp_path), {"test": rows.test}, tmp_path / "p", fresh=True
        )
    assert not server.asked


def test_a_tuned_variant_cannot_be_asked_behind_a_server(server):
    run = config.load("ambiguity", "soft", "smoke", 0, {"endpoint.url": server.url})
    with pytest.raises(UserError, match="--variant zero-shot"):
        pipeline.preflight(run)


def test_the_whole_evaluation_runs_against_a_server(server, tmp_path):
    settings = [f"endpoint.url={server.url}", "model.id=some-model", "endpoint.per_minute=100000"]
    call = ["run", "ambiguity", "--variant", "zero-shot", "--scale", "smoke", "--runs", tmp_path]
    done = command(*call, "--set", *settings)
    assert done.returncode == 0, done.stderr
    where = tmp_path / "smoke" / "ambiguity" / "zero-shot" / "0"
    record = json.loads((where / "run.json").read_text())
    assert record["stages"]["evaluate"]["model"]["device"] == server.url
    assert len(server.asked) == 2 * len((where / "predictions.jsonl").read_text().splitlines())
