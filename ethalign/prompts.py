"""What every prompt has in common: the chat template around a question.

The wording of questions belongs to the studies.
"""

from __future__ import annotations

from typing import Any

from ethalign.config import UserError


def wrap(template: str, text: str, tokenizer: Any, ending: str = "\nAnswer:") -> str:
    """A question that ends with ``ending``, in the tokenizer's chat template if asked for.

    Args:
        template: ``chat``, or another name for the text as it is.
        tokenizer: needed for ``chat`` only, else it may be None.
        ending: what the question ends with; the completion begins behind it with a blank.

    Raises:
        ValueError: ``chat`` without a tokenizer.
    """
    if template != "chat":
        return text
    if tokenizer is None:
        raise ValueError("the chat template needs a tokenizer")
    # The choices begin with a blank, so the turn ends where a blank may follow.
    return turn(text.removesuffix(ending), tokenizer).rstrip("\n") + ending


def turn(text: str, tokenizer: Any) -> str:
    """What a user says in the tokenizer's chat template, up to where the answer begins.

    A beginning-of-sequence token that the template writes is left to the tokenizer where it puts
    one before every text: no model has seen two.

    Raises:
        UserError: a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("this model's tokenizer has no chat template; use prompt.template=plain.")
    said = [{"role": "user", "content": text}]
    chat = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    begin = tokenizer.bos_token
    twice = begin and tokenizer(chat)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return chat.removeprefix(begin) if twice else chat
