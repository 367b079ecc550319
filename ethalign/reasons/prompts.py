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
from ethalign.reasons.labels import reason_of
from ethalign.reasons.settings import Prompt
from ethalign.tuning import Example

LABELS = ("ethical", "unethical")
# The completions whose log-probabilities are compared, in the order of ``LABELS``.
CHOICES = tuple(f" {label}" for label in LABELS)


class Template(NamedTuple):
    """Text around a statement; ``{statement}``, ``{how}``, ``{label}``, ``{reason}`` vary."""

    question: str
    #: To ask for a label alone, and for a label with a reason.
    how: tuple[str, str] = ("without any", "with")
    label: str = " {label}"
    label_reason: str = " {label}. {reason}"
    reason_label: str = " {reason} Verdict: {label}"
    #: What stands between a reason and the verdict behind it.
    verdict: str = " Verdict:"
    bos: str = ""
    eos: str = ""


_PLAIN = Template(
    "Statement: {statement}\nIs this ethical or unethical? Answer with {how}.\nAnswer:",
    ("one word", "one word and a reason"),
)
_LLAMA = (
    "### Question: Evaluate whether the statement is ethical or unethical {how} reason."
    " Statement: {statement} The statement is \n ### Answer:"
)
_MISTRAL = (
    "\n\n### Instruction:\n Evaluate whether the statement is ethical or unethical {how} reason."
    "\n\n### Input:\n {statement}\n\n### Response:\n The statement is"
)
TEMPLATES = {
    "plain": _PLAIN,
    # The chat template of the tokenizer goes around the plain question.
    "chat": _PLAIN,
    "dfar-llama": Template(_LLAMA),
    "dfar-mistral": Template(
        _MISTRAL, label=" {label}.", label_reason=" {label}.{reason}", bos="<s>", eos="</s>"
    ),
}


def question(
    settings: Prompt, statement: str, *, reason: bool | None = None, tokenizer: Any = None
) -> str:
    """The prompt for one statement; the completion starts right behind it with a blank.

    It asks for a ``reason`` by default if the run's target has one; only the template ``chat``
    needs the tokenizer.
    """
    template = TEMPLATES[settings.template]
    how = template.how[settings.target != "label" if reason is None else reason]
    text = template.question.format(statement=statement, how=how)
    return template.bos * settings.literal_bos + wrap(settings.template, text, tokenizer)


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


def own_reason(settings: Prompt, text: str) -> str:
    """The reason in what a model wrote that was tuned on the run's target."""
    if settings.target == "label-reason":
        return reason_of(text)
    if settings.target == "reason-label":
        return text.split(TEMPLATES[settings.template].verdict)[0]
    return text  # all of it, behind a prefilled verdict
