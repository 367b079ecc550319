"""Batched decoding: greedy or sampled, each sequence leaving the batch when it has ended."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ethalign.endpoint import Served
from ethalign.scoring import (
    Head,
    backbone,
    behind,
    by_length,
    left_pad,
    read,
    shared,
    split_all,
    wide,
)

if TYPE_CHECKING:
    from torch import Tensor

# Two tokens nearer than this (nats) are told apart by reading the text alone, without a batch.
# Float32 on one machine strays far less: 1e-4 was the most that was seen.
NEAR = 1e-3


class Written(NamedTuple):
    """Texts, and how probable each was: mean log-probability of its tokens (nats) and number.

    ``choices`` (n, k) are the log-probabilities of k other texts, if any were asked for, behind
    each of the n prompts.
    """

    texts: list[str]
    logp: NDArray[np.float64]
    tokens: NDArray[np.int64]
    choices: NDArray[np.float64] = np.zeros((0, 0))


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], **settings: Any) -> list[str]:
    """The texts of ``write``, which takes the same settings."""
    return write(model, tokenizer, prompts, **settings).texts


def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    stop: str | None = None,
    choices: Sequence[str] = (),
    quiet: bool = True,
) -> Written:
    """Continuations of n prompts, ``samples`` of each.

    A beginning that all share is read once a batch, and each prompt once for all its samples. In
    float32 a greedy text does not depend on what shares its batch; half precision rounds so
    coarsely that it may.

    Args:
        max_new_tokens: per continuation; an end-of-sequence token ends it earlier.
        min_new_tokens: of the first ones none ends it.
        temperature: 0 takes the most probable token; otherwise tokens are drawn from
            softmax(logits / temperature), each sequence from its own stream of random numbers,
            which follows from ``seed`` and its place.
        batch_size: prompts per batch, grouped by length.
        stop: cut a continuation before this text, and stop there; blank lines at its beginning
            are skipped.
        choices: texts of which only the log-probability behind each prompt is wanted, as of
            ``scoring.choice_logprobs``, without reading the prompts once more.

    Returns:
        n * samples texts without special tokens, the samples of one prompt side by side. The
        probability is that of the tokens at temperature 1, an end of sequence included.

    Raises:
        ValueError: a choice without tokens.
    """
    import torch

    pairs = split_all(tokenizer, prompts, choices)
    ids = [before for before, _ in pairs]
    if isinstance(model, Served):
        how = {"max_tokens": max_new_tokens, "temperature": temperature}
        told = model.continued(ids, samples=samples, least=min_new_tokens, seed=seed, **how)
        ended = [_cut(*one, stop) for one in told]
        logp, tokens = (np.array([one[k] for one in ended]) for k in (1, 2))
        besides = model.choices(pairs, len(choices))
        return Written([text for text, *_ in ended], logp, tokens, besides)
    n = len(prompts) * samples
    besides = np.zeros((len(prompts), len(choices)))
    found = Written([""] * n, np.zeros(n), np.zeros(n, dtype=int), besides)
    room = max([max_new_tokens, *(len(a) for _, answers in pairs for a in answers)])
    with torch.inference_mode():
        opening = shared(model, ids, room)
        lengths = min_new_tokens, max_new_tokens
        decoder = _Decoder(model, tokenizer, opening, *lengths, temperature, samples, stop)
        for group in by_length(ids, batch_size, "generating", quiet=quiet):
            places = [int(i) * samples + s for i in group for s in range(samples)]
            asked, answers = [ids[i] for i in group], [pairs[i][1] for i in group]
            besides[group], rows = decoder.run(asked, answers, [[seed, p] for p in places])
            for place, row in zip(places, rows, strict=True):
                text = tokenizer.decode([t for t, _ in row], skip_special_tokens=True)
                found.texts[place] = _begun(text).split(stop)[0] if stop else text
                found.logp[place] = np.mean([p for _, p in row])
                found.tokens[place] = len(row)
    return found


def _cut(
    text: str, tokens: Sequence[str], logp: Sequence[float], stop: str | None
) -> tuple[str, float, int]:
    """A server's text as ``write`` would have ended it: with its probability and its length."""
    if stop is None:
        return text, float(np.mean(logp)), len(tokens)
    written = itertools.accumulate(tokens)
    used = next((k for k, t in enumerate(written, 1) if stop in _begun(t)), len(tokens))
    return _begun(text).split(stop)[0], float(np.mean(logp[:used])), used


def _begun(text: str) -> str:
    """A text from its first line on that is not blank."""
    return re.sub(r"\A(?:\s*\n)+", "", text)


@dataclass
class _Decoder:
    """Decoding of one batch after another with the same settings (see ``write``)."""

    model: Any
    tokenizer: Any
    opening: list[int]
    least: int
    length: int
    temperature: float
    samples: int
    stop: str | None

    def __post_init__(self) -> None:
        import torch

        self.head = Head(self.model)
        more = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = [self.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
        # None: the token holds the text to stop at, which counts once something is written.
        self.stops: dict[int, bool | None] = {int(i): True for i in ends if i is not None}
        self.ends = list(self.stops)
        # Half precision strays by far more than any margin that could be checked again.
        exact = self.model.dtype == torch.float32 and not self.temperature
        self.near = NEAR if exact else 0.0

    def run(
        self, ids: list[list[int]], answers: list[list[list[int]]], seeds: list[list[int]]
    ) -> tuple[NDArray[np.float64], list[list[tuple[int, float]]]]:
        """Log-probabilities of answers, and new tokens, each with its log-probability.

        The latter of each row of ``ids`` as often as there are ``samples``.
        """
        import torch

        besides, hidden, cache, mask, position = self._read(ids, answers)
        found: list[list[tuple[int, float]]] = [[] for _ in seeds]
        draws = np.stack([np.random.default_rng(s).random(self.length) for s in seeds])
        alive = list(range(len(seeds)))
        for step in range(self.length):
            logp = self.head(hidden)[:, 0]
            if step < self.least:
                logp[:, self.ends] = float("-inf")
            tokens = self._next(logp, draws[alive, step])
            for row in self._unsure(logp):
                place = alive[row]
                written = [t for t, _ in found[place]]
                banned = self.ends if step < self.least else []
                tokens[row] = self._alone(ids[place // self.samples] + written, banned)
            values = logp[torch.arange(len(tokens)), tokens].tolist()
            for place, token, value in zip(alive, tokens, values, strict=True):
                found[place].append((token, value))
            ended = [self._ended(t, found[k]) for k, t in zip(alive, tokens, strict=True)]
            kept = [row for row, end in enumerate(ended) if not end]
            if not kept or step == self.length - 1:
                break
            if len(kept) < len(alive):
                rows = torch.tensor(kept, device=mask.device)
                cache.batch_select_indices(rows)
                mask, position = mask[rows], position[rows]
                alive = [alive[row] for row in kept]
            position = position + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            fed = torch.tensor([[tokens[row]] for row in kept], device=mask.device)
            hidden, cache = backbone(self.model, fed, mask, position, cache)
        return besides, found

    def _read(
        self, ids: list[list[int]], answers: list[list[list[int]]]
    ) -> tuple[NDArray[np.float64], Tensor, Any, Tensor, Tensor]:
        """Log-probabilities of answers, and last hidden state, cache, mask and position.

        The latter behind every prompt once per sample.
        """
        pad = self.tokenizer.pad_token_id
        hidden, cache, rows = read(self.model, ids, self.opening, pad)
        hidden = hidden[:, -1:]
        besides = np.zeros((len(ids), 0))
        if answers[0]:
            kept = copy.deepcopy(cache)  # scoring leaves its own tokens in the cache
            besides = behind(self.model, self.head, hidden, kept, rows, answers, pad)
        if self.samples > 1:
            cache.batch_repeat_interleave(self.samples)
        parts = hidden, rows.mask, rows.position[:, -1:]
        hidden, mask, position = (part.repeat_interleave(self.samples, 0) for part in parts)
        return besides, hidden, cache, mask, position

    def _next(self, logp: Tensor, draws: Any) -> list[int]:
        import torch

        if self.temperature == 0:
            return [int(t) for t in logp.argmax(-1)]
        total = (wide(logp) / self.temperature).softmax(-1).cumsum(-1)
        # Inversion: one number per token and sequence, whatever the size of the vocabulary.
        wanted = torch.as_tensor(draws, device=total.device)[:, None] * total[:, -1:]
        return [int(t) for t in torch.searchsorted(total, wanted, right=True)[:, 0]]

    def _unsure(self, logp: Tensor) -> list[int]:
        """Rows whose two best tokens are so near that the batch could decide between them."""
        if not self.near:
            return []
        best = logp.topk(2, dim=-1).values
        rows: list[int] = (best[:, 0] - best[:, 1] < self.near).nonzero()[:, 0].tolist()
        return rows

    def _alone(self, ids: list[int], banned: Sequence[int] = ()) -> int:
        """The most probable next token of one sequence, read from its beginning, unpadded."""
        hidden, _ = backbone(self.model, *left_pad([ids], 0, self.model.device), use_cache=False)
        logp = self.head(hidden[:, -1:])[0, 0]
        logp[list(banned)] = float("-inf")
        return int(logp.argmax())

    def _ended(self, token: int, written: list[tuple[int, float]]) -> bool:
        if token not in self.stops:
            text = self.tokenizer.decode([token]) if self.stop else ""
            self.stops[token] = None if self.stop and self.stop in text else False
        end = self.stops[token]
        if end is None:
            return str(self.stop) in _begun(self.tokenizer.decode([t for t, _ in written]))
        return end
