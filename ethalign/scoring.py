"""Log-probabilities of answer choices, without generating anything.

A prompt is read once: choices of one token are looked up in the distribution behind it, longer
ones continue from its cached keys and values. Logits exist for the positions that are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ethalign import records

if TYPE_CHECKING:
    from torch import Tensor


def choice_logprobs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    batch_size: int = 16,
    quiet: bool = True,
) -> NDArray[np.float64]:
    """Log-probability of every choice behind every prompt.

    log p(choice | prompt) = sum over its tokens of log p(token | prompt, tokens before), natural
    log. Prompt and choice are tokenised apart, as in training, so a choice should begin with
    its blank (" ethical").

    Args:
        model, tokenizer: a causal language model; it may hold adapters.
        prompts: n texts, of any lengths.
        choices: k texts of one or more tokens.
        batch_size: prompts per forward pass; rows are grouped by length.
        quiet: no progress bar.

    Returns:
        Array (n, k) of sums, each at most 0. Divide by ``choice_lengths`` to compare choices of
        different lengths per token.

    Raises:
        ValueError: a choice without tokens.
    """
    import torch

    ids = [tokenizer(p)["input_ids"] for p in prompts]
    answers = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in choices]
    if not all(answers):
        raise ValueError("every choice needs at least one token")
    order = np.argsort([-len(i) for i in ids], kind="stable")
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    out = np.zeros((len(prompts), len(choices)))
    head = Head(model)
    steps = groups if quiet else records.progress(groups, len(groups), "scoring", "batch")
    with torch.inference_mode():
        for group in steps:
            out[group] = _score(model, head, [ids[i] for i in group], answers, tokenizer)
    return out


def choice_lengths(tokenizer: Any, choices: Sequence[str]) -> NDArray[np.int64]:
    """Number of tokens of each choice, shape (k,)."""
    return np.array([len(tokenizer(c, add_special_tokens=False)["input_ids"]) for c in choices])


def _score(
    model: Any, head: Head, ids: list[list[int]], answers: list[list[int]], tokenizer: Any
) -> NDArray[np.float64]:
    long = [j for j, answer in enumerate(answers) if len(answer) > 1]
    batch = left_pad(ids, tokenizer.pad_token_id, model.device)
    hidden, cache = backbone(model, **batch, use_cache=bool(long))
    first = head(hidden[:, -1:])[:, 0]
    scores = first[:, [answer[0] for answer in answers]].double()
    if long:
        rest = _continue(model, head, batch, cache, [answers[j] for j in long], tokenizer)
        scores[:, long] += rest
    values: NDArray[np.float64] = scores.cpu().numpy()
    return values


def _continue(
    model: Any,
    head: Head,
    batch: dict[str, Tensor],
    cache: Any,
    long: list[list[int]],
    tokenizer: Any,
) -> Tensor:
    """Log-probability of the second and later tokens of the long choices, (rows, choices)."""
    import torch

    rows, k = batch["input_ids"].shape[0], len(long)
    width = max(len(answer) for answer in long) - 1
    pad = tokenizer.pad_token_id

    def padded(parts: list[list[int]], fill: int) -> Tensor:
        table = [part + [fill] * (width - len(part)) for part in parts]
        return torch.tensor(table, device=model.device).repeat(rows, 1)

    fed = padded([answer[:-1] for answer in long], pad)
    wanted = padded([answer[1:] for answer in long], pad)
    counted = padded([[1] * (len(answer) - 1) for answer in long], 0)
    cache.batch_repeat_interleave(k)
    start = batch["position_ids"][:, -1:].repeat_interleave(k, 0) + 1
    mask = torch.cat([batch["attention_mask"].repeat_interleave(k, 0), counted], 1)
    hidden, _ = backbone(
        model,
        input_ids=fed,
        attention_mask=mask,
        position_ids=start + torch.arange(width, device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    logp = head(hidden).gather(2, wanted[..., None])[..., 0] * counted
    return logp.sum(1).double().reshape(rows, k)


def left_pad(ids: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, Tensor]:
    """Rows padded on the left, with mask and positions, as keyword arguments of a model."""
    import torch

    length = max(len(row) for row in ids)
    table = [[pad] * (length - len(row)) + list(row) for row in ids]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in ids]
    attention = torch.tensor(mask, device=device)
    return {
        "input_ids": torch.tensor(table, device=device),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
    }


def backbone(model: Any, **inputs: Any) -> tuple[Tensor, Any]:
    """Last hidden states (rows, length, width) and the cache, without any logits."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    output = inner.base_model(**inputs)
    return output.last_hidden_state, getattr(output, "past_key_values", None)


class Head:
    """Hidden states to log-probabilities, in float32.

    In bfloat16 two logits near 16 cannot differ by less than 0.125, too coarse to compare two
    answers; the one matrix product at the end is therefore done in float32.
    """

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = inner.get_output_embeddings()
        self.weight = head.weight.detach().float()
        self.bias = None if getattr(head, "bias", None) is None else head.bias.detach().float()
        # Gemma squashes its logits, Cohere and Granite scale them.
        self.cap = getattr(inner.config, "final_logit_softcapping", None)
        self.scale = getattr(inner.config, "logit_scale", None) or 1.0
        self.scale /= getattr(inner.config, "logits_scaling", None) or 1.0

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits in float32, shape (..., vocabulary), of final hidden states (..., width)."""
        import torch

        logits = torch.nn.functional.linear(hidden.float(), self.weight, self.bias) * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.log_softmax(-1)
