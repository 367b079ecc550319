from typing import Any

import pandas as pd
import pytest

from ethalign.reasons import prompts
from ethalign.reasons.settings import Prompt

STATEMENT = "I {lied} to <b>him</b>."


def test_the_authors_llama_template_is_kept_to_the_letter() -> None:
    """With the text cut behind "### Answer:" for inference."""
    settings = Prompt(template="dfar-llama", target="label-reason")
    asked = prompts.question(settings, "S")
    assert asked == (
        "### Question: Evaluate whether the statement is ethical or unethical with reason."
        " Statement: S The statement is \n ### Answer:"
    )
    assert prompts.target(settings, "ethical", "Because.") == " ethical. Because."


def test_the_authors_mistral_template_keeps_its_oddities() -> None:
    settings = Prompt(template="dfar-mistral", target="label-reason", literal_bos=True)
    whole = prompts.question(settings, "S") + prompts.target(settings, "unethical", "Because.")
    assert whole == (
        "<s>\n\n### Instruction:\n Evaluate whether the statement is ethical or unethical with"
        " reason.\n\n### Input:\n S\n\n### Response:\n The statement is unethical.Because.</s>"
    )
    label = Prompt(template="dfar-mistral", target="label", literal_bos=True)
    assert prompts.target(label, "ethical", "ignored") == " ethical.</s>"
    assert "without any reason" in prompts.question(label, "S")


@pytest.mark.parametrize("template", ["plain", "dfar-llama", "dfar-mistral"])
def test_every_target_has_a_question_of_its_own(template: Any) -> None:
    targets: list[Any] = ["label", "label-reason", "reason-label"]
    asked = {prompts.question(Prompt(template=template, target=t), "S") for t in targets}
    assert len(asked) == 3
    why = prompts.why(Prompt(template=template), "S", "unethical")
    assert "is this unethical" in why or "is unethical" in why
    assert "ethical or unethical" not in why, "it wants a reason and no verdict"


@pytest.mark.parametrize("template", ["plain", "dfar-llama", "dfar-mistral"])
@pytest.mark.parametrize("target", ["label", "label-reason", "reason-label"])
def test_every_target_begins_with_a_blank_and_holds_its_label(template: Any, target: Any) -> None:
    settings = Prompt(template=template, target=target)
    text = prompts.target(settings, "unethical", "It harms {x}.")
    assert text.startswith(" ")
    assert "unethical" in text
    assert ("It harms {x}." in text) == (target != "label")
    assert STATEMENT in prompts.question(settings, STATEMENT), "braces are text"


def test_a_row_without_a_reason_teaches_the_label() -> None:
    settings = Prompt(target="label-reason")
    assert prompts.target(settings, "ethical", "  ") == " ethical"


def test_the_chat_template_goes_around_the_question() -> None:
    class Tokenizer:
        chat_template, bos_token = "there is one", None

        def apply_chat_template(
            self, turns: Any, tokenize: bool, add_generation_prompt: bool
        ) -> str:
            assert not tokenize
            assert add_generation_prompt
            return f"<user>{turns[0]['content']}<assistant>\n"

    settings = Prompt(template="chat")
    tokenizer: Any = Tokenizer()
    asked = prompts.question(settings, "S", tokenizer=tokenizer)
    assert asked.startswith("<user>Statement: S")
    assert asked.endswith("<assistant>\nAnswer:")
    with pytest.raises(ValueError, match="tokenizer"):
        prompts.question(settings, "S")


def test_a_scored_choice_is_the_start_of_every_trained_target() -> None:
    """What is compared at evaluation is what was learnt, token boundary included."""
    templates: list[Any] = ["plain", "dfar-llama", "dfar-mistral"]
    targets: list[Any] = ["label", "label-reason"]
    for template in templates:
        for label, choice in zip(prompts.LABELS, prompts.CHOICES, strict=True):
            for target in targets:
                settings = Prompt(template=template, target=target)
                assert prompts.target(settings, label, "R.").startswith(choice)


def test_examples_are_the_rows_as_a_model_sees_them() -> None:
    rows = pd.DataFrame({"statement": ["S", "T"], "label": ["ethical"] * 2, "reason": ["R.", ""]})
    settings = Prompt(target="label-reason")
    found = prompts.examples(settings, rows, None)
    assert [example.prompt for example in found] == [
        prompts.question(settings, text) for text in ("S", "T")
    ]
    assert [example.completion for example in found] == [" ethical. R.", " ethical"]
