"""Batched decoding: greedy or sampled, each sequence leaving the batch when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ethalign import records
from ethalign.scoring import Head, backbone, left_pad

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    stop: str | None = None,
    quiet: bool = True,
) -> list[str]:
    """Continuations of prompts.

    Args:
        prompts: n texts.
        max_new_tokens: per continuation; an end-of-sequence token ends it earlier.
        temperature: 0 takes the most probable token; otherwise tokens are drawn from
            softmax(logits / temperature), each sequence from its own stream of random numbers,
            so that a text does not depend on what shares its batch.
        samples: continuations per prompt; the prompt is read once for all of them.
        seed: of the random numbers.
        batch_size: prompts per batch, grouped by length.
        stop: cut a continuation before this text, and stop there.

    Returns:
        n * samples texts without special tokens, the samples of one prompt side by side.
    """
    import torch

    ids = [tokenizer(p)["input_ids"] for p in prompts]
    order = np.argsort([-len(i) for i in ids], kind="stable")
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    texts = [""] * (len(prompts) * samples)
    decoder = _Decoder(model, tokenizer, max_new_tokens, temperature, samples, stop)
    steps = groups if quiet else records.progress(groups, len(groups), "generating", "batch")
    with torch.inference_mode():
        for group in steps:
            places = [int(i) * samples + s for i in group for s in range(samples)]
            found = decoder.run([ids[i] for i in group], [[seed, place] for place in places])
            for place, tokens in zip(places, found, strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                texts[place] = text.split(stop)[0] if stop else text
    return texts


class _Decoder:
    """Decoding of one batch after another with the same settings."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        length: int,
        temperature: float,
        samples: int,
        stop: str | None,
    ) -> None:
        self.model, self.tokenizer, self.head = model, tokenizer, Head(model)
        self.length, self.temperature, self.samples = length, temperature, samples
        self.stop, self._stops = stop, {int(i): True for i in _ends(model, tokenizer)}

    def run(self, ids: list[list[int]], seeds: list[list[int]]) -> list[list[int]]:
        """New token ids of every sequence (rows of ``ids``, each ``samples`` times)."""
        import torch

        batch = left_pad(ids, self.tokenizer.pad_token_id, self.model.device)
        hidden, cache = backbone(self.model, **batch, use_cache=True)
        if self.samples > 1:
            cache.batch_repeat_interleave(self.samples)
        hidden = hidden[:, -1:].repeat_interleave(self.samples, 0)
        mask = batch["attention_mask"].repeat_interleave(self.samples, 0)
        position = batch["position_ids"][:, -1:].repeat_interleave(self.samples, 0)
        found: list[list[int]] = [[] for _ in seeds]
        draws = np.stack([np.random.default_rng(s).random(self.length) for s in seeds])
        alive = list(range(len(seeds)))
        for step in range(self.length):
            tokens = self._next(self.head(hidden)[:, 0], draws[alive, step])
            kept = []
            for row, (place, token) in enumerate(zip(alive, tokens, strict=True)):
                found[place].append(token)
                if not self._ended(token):
                    kept.append(row)
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
            hidden, cache = backbone(
                self.model,
                input_ids=fed,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
        return found

    def _next(self, logp: Tensor, draws: Any) -> list[int]:
        import torch

        if self.temperature == 0:
            return [int(t) for t in logp.argmax(-1)]
        total = (logp.double() / self.temperature).softmax(-1).cumsum(-1)
        # Inversion: one number per token and sequence, whatever the size of the vocabulary.
        wanted = torch.as_tensor(draws, device=logp.device)[:, None] * total[:, -1:]
        return [int(t) for t in torch.searchsorted(total, wanted, right=True)[:, 0]]

    def _ended(self, token: int) -> bool:
        if token not in self._stops:
            text = self.tokenizer.decode([token]) if self.stop else ""
            self._stops[token] = bool(self.stop) and str(self.stop) in text
        return self._stops[token]


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a sequence, after the tokenizer and the model's generation settings."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return {i for i in [tokenizer.eos_token_id, *listed] if i is not None}
