"""How a statement is put to a model, and what the model is trained to say.

A template is a handful of strings. ``plain`` and ``chat`` are this project's; ``dfar-llama`` and
``dfar-mistral`` are the templates of the Beyond Labels notebooks, their oddities included: the
question that already says "The statement is", and no blank between verdict and reason in the
Mistral one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from ethalign.prompts import wrap
from ethalign.reasons.labels import parse_label, reason_of
from ethalign.reasons.settings import Label, Prompt
from ethalign.tuning import Example

LABELS = ("ethical", "unethical")
# The completions whose log-probabilities are compared, in the order of ``LABELS``.
CHOICES = tuple(f" {label}" for label in LABELS)


class Template(NamedTuple):
    """Text around a statement; ``{statement}``, ``{how}``, ``{label}``, ``{reason}`` vary."""

    question: str
    #: What is asked for, in the order of ``TARGETS``.
    how: tuple[str, str, str]
    #: To ask a model that gives labels alone for the reason of its verdict.
    why: str
    label: str = " {label}"
    label_reason: str = " {label}. {reason}"
    reason_label: str = " {reason} Verdict: {label}"
    #: What stands between a reason and the verdict behind it.
    verdict: str = " Verdict:"
    bos: str = ""
    eos: str = ""


TARGETS = ("label", "label-reason", "reason-label")
_PLAIN = Template(
    "Statement: {statement}\nIs this ethical or unethical? Answer with {how}.\nAnswer:",
    ("one word", "one word and a reason", "a reason and then one word"),
    "Statement: {statement}\nWhy is this {label}? Answer with a reason.\nAnswer:",
)
# The first two are the authors'.
_HOW = ("without any reason", "with reason", "after a reason")
_LLAMA = Template(
    "### Question: Evaluate whether the statement is ethical or unethical {how}."
    " Statement: {statement} The statement is \n ### Answer:",
    _HOW,
    "### Question: Give the reason why the statement is {label}."
    " Statement: {statement} \n ### Answer:",
)
_MISTRAL = Template(
    "\n\n### Instruction:\n Evaluate whether the statement is ethical or unethical {how}."
    "\n\n### Input:\n {statement}\n\n### Response:\n The statement is",
    _HOW,
    "\n\n### Instruction:\n Give the reason why the statement is {label}."
    "\n\n### Input:\n {statement}\n\n### Response:\n",
    label=" {label}.",
    label_reason=" {label}.{reason}",
    bos="<s>",
    eos="</s>",
)
TEMPLATES = {
    "plain": _PLAIN,
    # The chat template of the tokenizer goes around the plain question.
    "chat": _PLAIN,
    "dfar-llama": _LLAMA,
    "dfar-mistral": _MISTRAL,
}


def question(settings: Prompt, statement: str, *, tokenizer: Any = None) -> str:
    """The prompt for one statement; the completion starts right behind it with a blank.

    It asks for what the run's target gives; only the template ``chat`` needs the tokenizer.
    """
    template = TEMPLATES[settings.template]
    how = template.how[TARGETS.index(settings.target)]
    return _wrapped(settings, template.question.format(statement=statement, how=how), tokenizer)


def why(settings: Prompt, statement: str, label: str, *, tokenizer: Any = None) -> str:
    """The prompt that asks for nothing but a reason of a verdict."""
    text = TEMPLATES[settings.template].why.format(statement=statement, label=label)
    return _wrapped(settings, text, tokenizer)


def _wrapped(settings: Prompt, text: str, tokenizer: Any) -> str:
    bos = TEMPLATES[settings.template].bos * settings.literal_bos
    return bos + wrap(settings.template, text, tokenizer)


def target(settings: Prompt, label: str, reason: str) -> str:
    """The completion that a model is tuned on, for the run's target.

    A row without a reason teaches the label alone, whatever the target.
    """
    template = TEMPLATES[settings.template]
    kind = settings.target if reason.strip() else "label"
    form: str = template._asdict()[kind.replace("-", "_")]
    return form.format(label=label, reason=reason.strip()) + template.eos * settings.literal_bos


def examples(settings: Prompt, rows: pd.DataFrame, tokenizer: Any) -> list[Example]:
    """Prompt and completion of every training row."""
    columns = (rows[name] for name in ("statement", "label", "reason"))
    return [
        Example(question(settings, text, tokenizer=tokenizer), target(settings, label, reason))
        for text, label, reason in zip(*columns, strict=True)
    ]


def read(settings: Prompt, text: str) -> tuple[Label | None, str]:
    """The verdict (or None) and the reason in what a model wrote behind ``question``.

    Where the reason comes first, only what follows the closing phrase is a verdict: the reason
    may name either label.
    """
    if settings.target != "reason-label":
        return parse_label(text), reason_of(text)
    closing = TEMPLATES[settings.template].verdict.strip()
    reason, _, verdict = text.partition(closing)
    return parse_label(verdict), reason.strip()
