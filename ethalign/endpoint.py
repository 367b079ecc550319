"""Models behind an OpenAI-compatible server: GPT-4o, or a server of one's own such as vLLM.

A chat gives the log-probabilities of the most probable next tokens only, at most 20. What is
missing there is bounded, counted and reported, never guessed. What has been answered is kept,
answer by answer, so that nothing is paid for twice. A server that completes texts, token by
token, can take the place of a model on this machine (``Served``).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ethalign import records
from ethalign.config import ADDRESS, Endpoint, UserError, digest

T = TypeVar("T")
# Between the seeds of two prompts.
SPREAD = 1_000_003
# Bytes of an answer; 20 log-probabilities and some hundred tokens are far less.
LARGEST = 8 * 2**20


def check(settings: Endpoint, *, tuned: bool) -> None:
    """Refuse (UserError) to tune what another machine holds."""
    if settings.server and tuned:
        raise UserError(
            "a model behind an endpoint cannot be tuned from here; choose variants without tuning,"
            " such as --variant pretrained, zero-shot or unaligned."
        )


class Answered(NamedTuple):
    """Log mass on both answers, (n, 2), and which of these are only upper bounds, (n, 2)."""

    logp: NDArray[np.float64]
    bounded: NDArray[np.bool_]


class Client:
    """Asks a server's model by name, not faster and not more often than the settings allow.

    Args:
        kept: a file to which every answer is appended as it comes, and from which it is taken if
            it is there; without one, answers are not kept.

    Raises:
        UserError: no plain address, or no usable key.
    """

    def __init__(self, settings: Endpoint, model: str, kept: Path | None = None) -> None:
        import openai

        self.path, self.kept = (
            kept,
            {row["key"]: row for row in records.read_rows(kept)} if kept else {},
        )
        if kept:
            records.append_rows(kept, [])  # which cuts off half a line
        key = _key(settings)
        hooks: dict[str, list[Any]] = {"request": [self._before], "response": [self._after]}
        self._openai = openai.OpenAI(
            api_key=key,
            # Or an Authorization in OPENAI_CUSTOM_HEADERS would take the key's place.
            default_headers={"Authorization": f"Bearer {key}"},
            base_url=settings.url,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks=hooks),
        )
        self.settings, self.model, self.tokenizer = settings, model, None
        self.requests, self.tokens, self._turn = 0, 0, -np.inf
        self._lock, self._stop = threading.Lock(), threading.Event()
        unknown = dict.fromkeys(("sha256", "dtype"), "not known")
        # What the server calls its model, with the fingerprint of how it is run.
        self.record: dict[str, Any] = {"id": model, "device": settings.url, **unknown}
        self.record["served"] = sorted({row["served"] for row in self.kept.values()})
        self.notes = [f"model {model} on {settings.url}", "its weights cannot be checked"]

    def permit(self, requests: int) -> None:
        """Refuse (UserError) more requests than the settings allow, before one costs anything."""
        limit = self.settings.max_requests
        if requests > limit:
            raise UserError(
                f"this needs {requests} requests and endpoint.max_requests is {limit}; raise it if"
                " you accept the cost, or lower data.limit_test."
            )

    def answers(self, asked: list[str], names: tuple[str, str]) -> Answered:
        """Log mass on two answers behind each of n prompts.

        A token counts for an answer if it begins it ("un" begins "unethical") and does not begin
        the other. An answer without any token in the list could have as much as the least
        probable token listed, or as much as is left over: the smaller of the two is its bound.

        Raises:
            UserError: the server refuses, or gives no log-probabilities.
        """

        def masses(choice: Any) -> list[Any]:
            top = choice["logprobs"]["content"][0]["top_logprobs"]
            logp = np.array([float(entry["logprob"]) for entry in top])
            if not (logp <= 0).all():
                raise ValueError("NaN, or more than certain")
            p = np.exp(logp)
            rest = min(float(p.min()), max(0.0, 1 - float(p.sum()))) if len(p) else 1.0
            tokens = [str(entry["token"]).strip().casefold() for entry in top]
            one, two = (name.casefold() for name in names)
            side = np.array([one.startswith(t) - two.startswith(t) for t in tokens])
            found = [float(p[side == 1].sum()), float(p[side == -1].sum())]
            return [*(mass or rest for mass in found), *(mass == 0 for mass in found)]

        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": self.settings.top}
        told = self._each(asked, "valid log-probabilities", lambda c: masses(c[0]), names, **more)
        found = np.reshape(told, (-1, 4)).astype(float)
        return Answered(np.log(np.maximum(found[:, :2], 1e-30)), found[:, 2:] == 1)

    def complete(self, asked: list[str], max_tokens: int) -> list[str]:
        """What the model writes behind each prompt at temperature 0.

        Raises:
            UserError: the server refuses, or answers without a text.
        """
        return self._each(
            asked,
            "text",
            lambda c: self._hide(str(c[0]["message"]["content"] or "")),
            max_tokens=max_tokens,
        )

    def _each(
        self,
        asked: Sequence[Any],
        what: str,
        read: Callable[[Any], T],
        names: tuple[str, ...] = (),
        **more: Any,
    ) -> list[T]:
        """What is read from each answer, in order; the first failure and Ctrl-C end the rest."""
        self._stop.clear()
        with ThreadPoolExecutor(self.settings.concurrent) as pool:
            try:
                return list(pool.map(lambda prompt: self._once(prompt, read, names, more), asked))
            except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
                gave = f"{self.settings.url} gave no {what} for {self.model}"
                raise UserError(f"{gave}; choose a server and a model that do.") from error
            finally:
                self._stop.set()

    def _once(
        self, prompt: Any, read: Callable[[Any], T], names: tuple[str, ...], more: dict[str, Any]
    ) -> T:
        """What is read from the choices of an answer; asked for only if it is not kept."""
        key = digest([self.model, prompt, names, more])
        if key not in self.kept:
            content = self._ask(prompt, more)
            told = (content.get(name) for name in ("model", "system_fingerprint"))
            row = {"key": key, "found": read(content["choices"])}
            row["served"] = self._hide(" ".join(str(part) for part in told if part))
            with self._lock:
                self.kept[key] = row
                self.record["served"] = sorted({*self.record["served"], row["served"]})
                if self.path:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(records.line(row))
        found: T = self.kept[key]["found"]
        return found

    def _call(self, prompt: Any) -> tuple[Any, dict[str, Any]]:
        """What sends a prompt, and how it is put."""
        create = self._openai.chat.completions.with_raw_response.create
        return create, {"messages": [{"role": "user", "content": prompt}]}

    def _ask(self, prompt: Any, more: dict[str, Any]) -> Any:
        import openai

        create, put = self._call(prompt)
        try:
            body = {"temperature": 0, **put, **more}
            return create(model=self.model, **body).http_response.json()
        except (ValueError, RecursionError):
            status, reason = 0, "what came is not JSON"
        except openai.APIError as error:
            status = getattr(error, "status_code", 503)
            reason = str(error.__cause__ or "") or error.message
        reason = "".join(c if c.isprintable() else " " for c in reason)
        reason = self._hide(reason)[:200]
        way = f"check endpoint.url, model {self.model} and the key in {self.settings.key_env}"
        if status in (408, 409, 429) or status >= 500:
            way = "what was answered is kept, so run the same command again later"
        raise UserError(f"{self.settings.url} gave no answer ({reason}); {way}.")

    def _hide(self, text: str) -> str:
        """Text of the server's without the key, which it knows from us."""
        return text.replace(self._openai.api_key, "***")

    def _before(self, request: Any) -> None:
        """Count an attempt and wait for its turn."""
        with self._lock:
            self.permit(self.requests + 1)
            self.requests += 1
            now = time.monotonic()
            turn = max(now, self._turn)
            self._turn = turn + 60 / self.settings.per_minute
        if self._stop.wait(turn - now):
            raise UserError("another request failed.")
        request.extensions["begun"] = time.monotonic()

    def _after(self, response: Any) -> None:
        """Read an answer and count its tokens, within the limits of time and size of a whole one.

        Half an answer is a failure of the line, so that it is tried again; a page in HTML is not.
        """
        import httpx2

        begun, content = response.request.extensions["begun"], bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > LARGEST:
                raise UserError(
                    f"{self.settings.url} gave no answer (it has more than {LARGEST:,} bytes);"
                    " check endpoint.url."
                )
            if time.monotonic() - begun > self.settings.timeout:
                raise httpx2.ReadTimeout("the answer timed out", request=response.request)
        response._content = bytes(content)
        if response.is_success and "html" not in response.headers.get("Content-Type", ""):
            try:
                used = int((response.json().get("usage") or {}).get("total_tokens") or 0)
            except (ValueError, AttributeError, TypeError, RecursionError):
                raise httpx2.DecodingError("broken JSON", request=response.request) from None
            with self._lock:
                self.tokens += used


class Served(Client):
    """A model that completes texts in the place of one on this machine.

    ``scoring.choice_logprobs`` and ``generation.write`` take it as their ``model``. Prompts are
    sent as token ids, so that the server splits nothing in another way than this machine does.
    """

    def choices(
        self, pairs: Sequence[tuple[list[int], list[list[int]]]], k: int
    ) -> NDArray[np.float64]:
        """Log-probability of each of k answers behind each of n prompts (nats), (n, k)."""
        rows = [(before + answer, len(answer)) for before, answers in pairs for answer in answers]
        found = self.behind([row for row, _ in rows], [length for _, length in rows])
        return found.reshape(len(pairs), k)

    def behind(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> NDArray[np.float64]:
        """Log-probability of the last so many tokens of each of n rows (nats), (n,).

        Raises:
            UserError: the server refuses, or does not tell the log-probabilities of a prompt.
        """
        found = np.zeros(len(rows))
        how: dict[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1}
        what = "log-probabilities of a prompt"
        for length in {*lengths}:
            places = [k for k, n in enumerate(lengths) if n == length]
            # Behind the prompt comes the one token that a server has to write.
            tail = slice(-1 - length, -1)

            def read(choices: Any, tail: slice = tail, length: int = length) -> float:
                return _sum(choices[0]["logprobs"]["token_logprobs"][tail], length)

            asked = [[*rows[k]] for k in places]
            found[places] = self._each(asked, what, read, (str(length),), **how)
        return found

    def continued(
        self, rows: Sequence[Sequence[int]], *, samples: int, least: int, seed: int, **how: Any
    ) -> list[tuple[str, list[str], list[float]]]:
        """Text, tokens and their log-probabilities (nats) of ``samples`` ways to go on from each.

        ``how`` holds ``max_tokens`` and ``temperature``; a server's own defaults for sampling,
        such as a model's ``generation_config`` has, are put out of force.
        """
        # Prompts that are the same still draw apart.
        more = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": least}
        asked = [([*row], seed + SPREAD * k) for k, row in enumerate(rows)]

        def read(choices: Any) -> list[tuple[str, list[str], list[float]]]:
            found = []
            for choice in choices:
                told = choice["logprobs"]
                found.append((choice["text"], told["tokens"], told["token_logprobs"]))
                _sum(told["token_logprobs"], len(told["tokens"]))
                if not told["tokens"]:  # an end alone is a token, too
                    raise ValueError("how probable an empty text is")
            if len(found) != samples:
                raise ValueError("another number of texts than asked for")
            return found

        how |= {"n": samples, "logprobs": 1, "top_p": 1.0, "extra_body": more}
        told = self._each(asked, "texts with tokens", read, **how)
        return [one for each in told for one in each]

    def _call(self, prompt: Any) -> tuple[Any, dict[str, Any]]:
        ids, seed = prompt if isinstance(prompt, tuple) else (prompt, 0)
        return self._openai.completions.with_raw_response.create, {"prompt": ids, "seed": seed}


def _sum(values: Sequence[float], length: int) -> float:
    """Of so many log-probabilities."""
    if len(values) != length or not all(value <= 0 for value in values):
        raise ValueError("NaN, more than certain, or missing")
    return float(sum(values))


def _key(settings: Endpoint) -> str:
    """The key from the environment; a server on this machine may need none."""
    if settings.url is None:
        raise UserError("endpoint.url is missing; give the base URL of the server.")
    key = os.environ.get(settings.key_env, "").strip()
    address = ADDRESS.fullmatch(settings.url)
    if not key and address and address[1].lower() in ("localhost", "127.0.0.1", "[::1]"):
        return "no-key-needed"
    if re.fullmatch("[!-~]+", key):
        return key
    state = "holds no valid key" if key else "is not set"
    raise UserError(f"the environment variable {settings.key_env} {state}; export your API key.")
