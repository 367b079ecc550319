"""Models behind an OpenAI-compatible server: GPT-4o, or an own server such as vLLM.

Such a server gives the log-probabilities of the most probable next tokens only, at most 20. What
is missing there is bounded, counted and reported, never guessed.
"""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ethalign.config import Endpoint, UserError

AGAIN = "; what was answered is kept, so run the same command again later."


class Answered(NamedTuple):
    """Log mass on both answers, (n, 2), and where one of them is only an upper bound, (n,)."""

    logp: NDArray[np.float64]
    bounded: NDArray[np.bool_]


class Busy(Exception):
    """A failure that may pass: too many requests, a time-out, half an answer."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Client:
    """Asks one model on one server, not faster and not more often than its settings allow.

    Args:
        settings: the ``endpoint`` block of a run; its key is read from the environment.
        model: the model's name on that server.

    Raises:
        UserError: no address or no key.
    """

    def __init__(self, settings: Endpoint, model: str) -> None:
        import httpx

        if settings.url is None:
            raise UserError("endpoint.url is missing; give the base URL of the server.")
        key = os.environ.get(settings.key_env, "")
        local = httpx.URL(settings.url).host in ("localhost", "127.0.0.1", "::1")
        if not key and not local:
            raise UserError(
                f"the environment variable {settings.key_env} is empty; put the key there."
            )
        self.settings, self.model, self.tokenizer = settings, model, None
        self.requests, self.tokens, self._last = 0, 0, -1e9
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=settings.timeout)
        # The key is never recorded.
        self.record = {
            "id": model,
            "sha256": "not known",
            "device": settings.url,
            "dtype": "not known",
        }
        self.notes = [f"model {model} on {settings.url}", "its weights cannot be checked"]

    def permit(self, requests: int) -> None:
        """Refuse more requests than the settings allow, before the first one costs anything.

        Raises:
            UserError: too many; names the parameter.
        """
        if requests > self.settings.max_requests:
            raise UserError(
                f"this needs {requests} requests and endpoint.max_requests is"
                f" {self.settings.max_requests}; raise it if you accept the cost, or lower"
                " data.limit_test."
            )

    def answers(self, asked: list[str], names: tuple[str, str]) -> Answered:
        """Log mass on two answers behind each prompt.

        A token counts for an answer if it begins it ("un" begins "unethical") and does not begin
        the other. An answer without any token in the list could have as much as the least
        probable token listed, or as much as is left over: the smaller of the two is its bound.

        Args:
            asked: n prompts.
            names: the two answers.

        Raises:
            UserError: the server refuses, or gives no log-probabilities.
        """
        found = [self._masses(self._listed(prompt), names) for prompt in asked]
        masses = np.array([pair for pair, _ in found]).reshape(-1, 2)
        return Answered(np.log(np.maximum(masses, 1e-30)), np.array([b for _, b in found], bool))

    def _masses(
        self, listed: list[dict[str, Any]], names: tuple[str, str]
    ) -> tuple[tuple[float, float], bool]:
        p = np.exp([float(entry["logprob"]) for entry in listed])
        rest = min(float(p.min()), max(0.0, 1 - float(p.sum()))) if len(p) else 1.0
        tokens = [str(entry["token"]).strip().casefold() for entry in listed]
        whose = [[bool(t) and name.casefold().startswith(t) for name in names] for t in tokens]
        masses = [sum(p[i] for i, w in enumerate(whose) if w[k] and not w[1 - k]) for k in (0, 1)]
        bounded = 0 in masses
        first, second = (float(m) if m else rest for m in masses)
        return (first, second), bounded

    def complete(self, asked: list[str], max_tokens: int) -> list[str]:
        """What the model writes behind each prompt at temperature 0.

        Raises:
            UserError: the server refuses, or answers without a text.
        """
        texts = []
        for prompt in asked:
            content = self._ask(prompt, {"max_tokens": max_tokens})
            try:
                texts.append(str(content["choices"][0]["message"]["content"] or ""))
            except (KeyError, IndexError, TypeError):
                raise UserError(f"{self.settings.url} gave no text for {self.model}.") from None
        return texts

    def _listed(self, prompt: str) -> list[dict[str, Any]]:
        """The most probable next tokens with their log-probabilities."""
        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": self.settings.top}
        content = self._ask(prompt, more)
        try:
            listed: list[dict[str, Any]] = content["choices"][0]["logprobs"]["content"][0][
                "top_logprobs"
            ]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self.settings.url} gave no log-probabilities for {self.model}; choose a model"
                " and a server that return top_logprobs."
            ) from None
        return listed

    def _ask(self, prompt: str, more: dict[str, Any]) -> Any:
        import tenacity

        settings = self.settings
        backoff = tenacity.wait_random_exponential(multiplier=settings.wait, max=60)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Busy),
            stop=tenacity.stop_after_attempt(settings.retries + 1),
            wait=lambda state: max(backoff(state), _wait(state)),
            reraise=True,
        )
        try:
            return retrying(self._once, prompt, more)
        except Busy as error:
            tries = settings.retries + 1
            raise UserError(f"{settings.url} failed {tries} times: {error}{AGAIN}") from None

    def _once(self, prompt: str, more: dict[str, Any]) -> Any:
        import httpx

        pause = 60 / self.settings.per_minute - (time.monotonic() - self._last)
        if pause > 0:
            time.sleep(pause)
        self._last = time.monotonic()
        self.requests += 1
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "temperature": 0, **more}
        try:
            reply = self._http.post(f"{self.settings.url}/chat/completions", json=body)
            _refuse(reply, str(self.settings.url))
            content = reply.json()
        except (httpx.TransportError, ValueError) as error:
            raise Busy(f"{type(error).__name__}: {error}") from None
        self.tokens += int((content.get("usage") or {}).get("total_tokens", 0))
        return content


def _refuse(reply: Any, url: str) -> None:
    """Tell failures that pass from those that do not."""
    if reply.status_code == 429 or reply.status_code >= 500:
        after = reply.headers.get("retry-after", "")
        raise Busy(f"status {reply.status_code}", float(after) if after.isdigit() else 0.0)
    if reply.status_code >= 400:
        raise UserError(f"{url} refused with status {reply.status_code}: {reply.text[:200]}")


def _wait(state: Any) -> float:
    """What the server asked for, at most a minute."""
    error = state.outcome.exception()
    return min(60.0, getattr(error, "wait", 0.0))
