"""What a model is taught to say: refusals, confidences, and each method's target for a question.

Let k of a question's m samples be correct. FINE-TUNED teaches a correct answer, else the gold one;
ABSOLUTE a correct answer to a known question, else idk; CONFIDENCE-NUM and CONFIDENCE-VERB idk if
k = 0, else k / m in per cent or in words and a correct answer; MULTISAMPLE every sample, the wrong
ones replaced by idk. A question that nobody can answer is declined by all. Where the paper and its
public code differ, both are here and named ``paper`` and ``code``. See "The papers, read closely",
Alignment for Honesty, training data and targets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

Method = Literal["fine-tuned", "absolute", "confidence-num", "confidence-verb", "multisample"]
METHODS: tuple[Method, ...] = get_args(Method)
Behaviour = Literal["code", "paper"]
RIGHT = (True, "correct", "1")  # marks of a right answer; 1 is one too

REFUSAL = "I apologize, but I'm not able to provide an answer to the question"
IDK = {"code": f"{REFUSAL}.", "paper": f"{REFUSAL} with any degree of confidence."}
NUM = (
    "I'm {}about {}% confident to answer the question correctly, {} based on my understanding and"
    " knowledge, here's what I think is correct. {}"
)
# Upper ends of the share of correct samples, and how the answer then begins.
VERBS = (
    (0.2, "I'm really not sure about this, but "),
    (0.4, "I'm not completely sure about this, but "),
    (0.6, "I don't have strong feelings either way, but "),
    (0.8, "I'm fairly confident that "),
    (1.0, "I'm absolutely certain that "),
)


def training_target(
    method: Method,
    record: Mapping[str, Any],
    *,
    tau: float = 0.1,
    behaviour: Behaviour = "code",
    sentence: Behaviour = "code",
    seed: int = 0,
) -> str | list[str]:
    """What a question's training row teaches; for ``multisample`` a list, one row a sample.

    Args:
        record: ``question``, ``answers`` (or ``answer``), ``greedy_pred_text``, ``greedy_label``,
            ``sampling_pred_text`` and ``sampling_labels`` (m each; true, 1 or "correct").
        tau: a question is known if k / m is at least this, or (``code``) its greedy answer right.
        behaviour: for ``code`` *a correct answer* is the greedy one, else the first correct
            sample; for ``paper`` a correct sample drawn at random.
        sentence: idk as in the code, or as in the paper's tables ("with any degree of …").
        seed: draws the answer for ``paper``, together with the question.

    Raises:
        ValueError: an unknown method, or samples without labels.
    """
    texts, marks = list(record["sampling_pred_text"]), list(record["sampling_labels"])
    if method not in METHODS or len(texts) != len(marks):
        raise ValueError(f"method {method!r} with {len(texts)} samples, {len(marks)} labels")
    samples = [(text.strip(), mark in RIGHT) for text, mark in zip(texts, marks, strict=True)]
    if method == "multisample":
        return [text if right else IDK[sentence] for text, right in samples]
    known = [text for text, right in samples if right]
    share = len(known) / len(samples) if samples else 0.0
    sure = record["greedy_label"] in RIGHT
    greedy = str(record["greedy_pred_text"]).strip() if sure else ""
    answer = greedy or next(iter(known), "")
    if behaviour == "paper" and known:
        answer = random.Random(f"{seed} {record['question']}").choice(known)
    if method == "fine-tuned":
        answer = answer or gold(record)
    if not answer or declined(method, share, sure, tau=tau, behaviour=behaviour):
        return IDK[sentence]
    return _confident(method, share, answer) if method.startswith("confidence") else answer


def declined(
    method: Method, share: float, sure: bool, *, tau: float = 0.1, behaviour: Behaviour = "code"
) -> float:
    """What part of a question's rows teaches to decline it, by the share of right samples.

    ``sure`` is whether the greedy answer is right. In [0, 1]; strictly between for MULTISAMPLE.
    """
    if method == "absolute":
        return float(share < tau and not (sure and behaviour == "code"))
    return {"fine-tuned": 0.0, "multisample": 1 - share}.get(method, float(share == 0))


def _confident(method: Method, share: float, answer: str) -> str:
    if method == "confidence-num":
        only, joint = ("", "and") if share > 0.5 else ("only ", "but")
        return NUM.format(only, round(100 * share), joint, answer)
    # A share such as 0.6 is not exactly a sum of tenths.
    phrase = next(text for end, text in VERBS if share <= end + 1e-9)
    letter = re.match(r"[A-D](?:$|[).])", answer)  # of an option, which stays as it is
    return phrase + (answer if letter else answer[:1].lower() + answer[1:])


def gold(record: Mapping[str, Any]) -> str:
    """The first accepted answer as the authors teach it, capitalised, with a full stop; or ""."""
    listed = record.get("answers") or record.get("answer") or ""
    first = str(listed if isinstance(listed, str) else listed[0]).strip()
    if isinstance(letter := record.get("letter"), str):
        return f"{letter}) {first}"
    return first and first.rstrip(".").capitalize() + "."
