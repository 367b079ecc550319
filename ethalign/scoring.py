"""Log-probabilities of answer choices, without generating anything.

A prompt is read once: choices of one token are looked up in the distribution behind it, longer
ones continue from its cached keys and values. Logits exist for the positions that are needed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ethalign import records
from ethalign.endpoint import Served

if TYPE_CHECKING:
    from torch import Tensor

# Shorter openings are not worth a pass of their own.
SHARED = 8
#: Batches in a chunk of items: what is scored, or written, in one go, sorted by length, and lost
#: if it is cut off. In file order a batch would be padded to the longest of any few neighbours.
BATCHES = 4


def choice_logprobs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """Log-probability of each of k choices behind each of n prompts, (n, k), each at most 0.

    log p(choice | prompt) = sum over its tokens of log p(token | prompt, tokens before), natural
    log. A choice should begin with its blank (``" ethical"``); for its tokens see ``split``.
    Prompts of like length share a forward pass, for which what all begin with is read once.

    Raises:
        ValueError: a choice without tokens.
    """
    import torch

    pairs = split_all(tokenizer, prompts, choices)
    ids = [before for before, _ in pairs]
    if isinstance(model, Served):
        return model.choices(pairs, len(choices))
    out, head, pad = np.zeros((len(prompts), len(choices))), Head(model), tokenizer.pad_token_id
    room = max((len(answer) for _, answers in pairs for answer in answers), default=0)
    opening = shared(model, ids, room)
    with torch.inference_mode():
        for group in by_length(ids, batch_size, "scoring", quiet=True):
            asked, answers = [ids[i] for i in group], [pairs[i][1] for i in group]
            out[group] = _score(model, head, opening, asked, answers, pad)
    return out


def split_all(
    tokenizer: Any, prompts: Sequence[str], choices: Sequence[str]
) -> list[tuple[list[int], list[list[int]]]]:
    """Token ids of every prompt, and of every choice that goes on behind it (see ``split``).

    Raises:
        ValueError: a choice without tokens.
    """
    found = [split(tokenizer, prompt, choices) for prompt in prompts]
    if not all(all(answers) for _, answers in found):
        raise ValueError("every choice needs at least one token")
    return found


def split(tokenizer: Any, prompt: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt, and of each text that goes on behind it.

    The latter are what the encoding of both together has behind that of the prompt. Encoded by
    itself, a text would get another blank before it from many SentencePiece tokenizers. Where a
    token lies across the boundary it is encoded by itself all the same, with a warning.
    """
    before, found = tokenizer(prompt)["input_ids"], []
    for text in texts:
        both = tokenizer(prompt + text)["input_ids"]
        if both[: len(before)] == before:
            found.append(both[len(before) :])
            continue
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        ends = f"{prompt[-12:]!r} and {text[:12]!r}"
        warnings.warn(f"one token lies across {ends}; they are encoded apart", stacklevel=2)
    return before, found


def by_length(rows: Sequence[Any], size: int, what: str, *, quiet: bool) -> Iterable[Any]:
    """Places of rows, arrays (size,) of like length, longest first; with a bar or ``quiet``."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    return groups if quiet else records.progress(groups, len(groups), what, "batch")


def shared(model: Any, ids: Sequence[list[int]], room: int) -> list[int]:
    """The tokens that all prompts begin with, if it is worth while to read them apart.

    At least one token of each prompt is left over; ``room`` tokens more may follow it.
    """
    # A window of attention would count the padding between an opening and the rest.
    window = getattr(model.config.get_text_config(), "sliding_window", None) or math.inf
    if len(ids) < 2 or max(map(len, ids)) + room > window:
        return []
    # What the first and the last in alphabetical order share, all others share.
    pairs = zip(min(ids), max(ids), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    same = min(same, min(map(len, ids)) - 1)
    return ids[0][:same] if same >= SHARED else []


def read(
    model: Any,
    ids: Sequence[Sequence[int]],
    opening: list[int],
    pad: int,
    *,
    use_cache: bool = True,
) -> tuple[Tensor, Any, Padded]:
    """Prompts that begin with an opening, which is read once for all of them.

    Returns:
        The last hidden states of what stands behind the opening (rows, length, width), the
        cache, and that with a mask which covers the opening too.
    """
    import torch

    cache, before = None, len(opening)
    rows = left_pad([one[before:] for one in ids], pad, model.device)
    if before:
        _, cache = backbone(model, *left_pad([opening], 0, model.device))
        cache.batch_repeat_interleave(len(ids))
        ones = torch.ones_like(rows.mask[:, :1]).repeat(1, before)
        rows = Padded(rows.ids, torch.cat([ones, rows.mask], 1), rows.position + before)
    hidden, cache = backbone(model, *rows, cache, use_cache=use_cache or bool(before))
    return hidden, cache, rows


def _score(
    model: Any,
    head: Head,
    opening: list[int],
    asked: Sequence[Sequence[int]],
    answers: list[list[list[int]]],
    pad: int,
) -> NDArray[np.float64]:
    """Log-probabilities of the answers behind each row, (rows, choices)."""
    long = any(len(ids) > 1 for row in answers for ids in row)
    hidden, cache, rows = read(model, asked, opening, pad, use_cache=long)
    return behind(model, head, hidden[:, -1:], cache, rows, answers, pad)


def behind(
    model: Any,
    head: Head,
    hidden: Tensor,
    cache: Any,
    before: Padded,
    answers: list[list[list[int]]],
    pad: int,
) -> NDArray[np.float64]:
    """Log-probabilities of answers behind what ``read`` has read, whose cache they go on in."""
    import torch

    long = [j for j, one in enumerate(zip(*answers, strict=True)) if max(map(len, one)) > 1]
    first = torch.tensor([[ids[0] for ids in row] for row in answers], device=model.device)
    scores = wide(head(hidden)[:, 0].gather(1, first))
    if long:
        rest = [row[j] for row in answers for j in long]
        scores[:, long] += _continue(model, head, before, cache, rest, pad)
    return np.asarray(scores.cpu().numpy(), dtype=float)


def _continue(
    model: Any, head: Head, asked: Padded, cache: Any, long: list[list[int]], pad: int
) -> Tensor:
    """Log-probability of second and later tokens of ``long``, k choices a row: (rows, k)."""
    import torch

    rows = asked.ids.shape[0]
    k = len(long) // rows
    width = max(len(answer) for answer in long) - 1

    def padded(parts: list[list[int]], fill: int) -> Tensor:
        table = [part + [fill] * (width - len(part)) for part in parts]
        return torch.tensor(table, device=model.device)

    fed = padded([answer[:-1] for answer in long], pad)
    wanted = padded([answer[1:] for answer in long], pad)
    counted = padded([[1] * (len(answer) - 1) for answer in long], 0)
    cache.batch_repeat_interleave(k)
    start = asked.position[:, -1:].repeat_interleave(k, 0) + 1
    position = start + torch.arange(width, device=model.device)
    mask = torch.cat([asked.mask.repeat_interleave(k, 0), counted], 1)
    hidden, _ = backbone(model, fed, mask, position, cache)
    logp = head(hidden).gather(2, wanted[..., None])[..., 0] * counted
    return wide(logp.sum(1)).reshape(rows, k)


def wide(values: Tensor) -> Tensor:
    """The values in float64, on the processor where the device (Apple's) has no such numbers."""
    return (values.cpu() if values.device.type == "mps" else values).double()


class Padded(NamedTuple):
    """Rows padded on the left: token ids, mask and positions, each (rows, length)."""

    ids: Tensor
    mask: Tensor
    position: Tensor


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: Any) -> Padded:
    """Rows of token ids, padded on the left."""
    import torch

    length = max(len(row) for row in rows)
    ids = [[pad] * (length - len(row)) + list(row) for row in rows]
    ones = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    mask = torch.tensor(ones, device=device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    return Padded(torch.tensor(ids, device=device), mask, position)


def backbone(
    model: Any, ids: Any, mask: Any, position: Any, cache: Any = None, *, use_cache: bool = True
) -> tuple[Tensor, Any]:
    """Last hidden states (rows, length, width) and the cache, without any logits."""
    fed = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
    output = _bare(model).base_model(**fed, past_key_values=cache, use_cache=use_cache)
    return output.last_hidden_state, getattr(output, "past_key_values", None)


def logits(model: Any, hidden: Tensor, head: Any = None) -> Tensor:
    """Logits (..., vocabulary) of last hidden states (..., width), as the model gives them."""
    inner = _bare(model)
    # As one matrix: of a slice with more dimensions, matmul copies the weights for every row.
    flat = (head or inner.get_output_embeddings())(hidden.reshape(-1, hidden.shape[-1]))
    # Gemma squashes its logits; Cohere scales them, Granite divides them.
    config = inner.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    flat = flat if scale == 1.0 else flat * scale
    flat = cap * (flat / cap).tanh() if cap else flat
    shaped: Tensor = flat.reshape(*hidden.shape[:-1], -1)
    return shaped


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Head:
    """Hidden states to log-probabilities, in float32.

    In bfloat16 two logits near 16 cannot differ by less than 0.125, too coarse to compare two
    answers; the one matrix product at the end is therefore done in float32.
    """

    def __init__(self, model: Any) -> None:
        self.model, head = model, _bare(model).get_output_embeddings()
        bias = getattr(head, "bias", None)
        self.weight = head.weight.detach().float()
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., vocabulary) of final hidden states (..., width)."""
        import torch

        def product(rows: Tensor) -> Tensor:
            return torch.nn.functional.linear(rows, self.weight, self.bias)

        return logits(self.model, hidden.float(), product).log_softmax(-1)
