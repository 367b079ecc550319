"""What every prompt has in common: the chat template around a question.

The wording of questions belongs to the studies.
"""

from __future__ import annotations

from typing import Any


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
    turn = [{"role": "user", "content": text.removesuffix(ending)}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    # The choices begin with a blank, so the turn ends where a blank may follow.
    return str(chat).rstrip("\n") + ending
