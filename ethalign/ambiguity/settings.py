"""Settings of the ambiguity study beside those that every study has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ethalign import config
from ethalign.config import Section


class Prompt(Section):
    """How an item is put to the model."""

    template: Literal["plain", "chat"] = Field(
        "plain", description="wording; chat adds the tokenizer's chat template"
    )


class Votes(Section):
    """Whose votes, how they are asked for, and what a model learns."""

    dataset: Literal["dilemmas", "anecdotes"] = Field(
        "dilemmas", description="votes on pairs or stories"
    )
    split: Literal["dev", "train", "excerpt"] = Field(
        "dev", description="official rows to train on; excerpt is the 60 anecdotes that are small"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of training rows to calibrate on; of split=train dev"
    )
    answers: Literal["words", "letters", "yes-no", "authors"] = Field(
        "words", description="first/second (right/wrong), A/B, yes/no, or the authors' yes/no"
    )
    swap: bool = Field(True, description="ask pairs in both orders; false: as the file has them")
    target: Literal["hard", "sampled", "soft", "verbalised"] = Field(
        "hard", description="learn the majority, a vote an epoch, all votes, or a written share"
    )
    max_words: int = Field(250, ge=10, description="words of a story; the rest is cut off")
    draws: int = Field(1000, ge=10, description="posterior draws of the best possible scores")
    bins: int = Field(10, ge=1, description="bins of a reliability diagram")


class Baselines(config.Encoder):
    """The encoders that stand beside the language models."""

    encoder_batch_size: int = Field(16, ge=1, description="rows per step of the encoder")
    encoder_weight_decay: float = Field(0.01, ge=0, description="encoder's weight decay")
    encoder_warmup: float = Field(0.1, ge=0, le=1, description="share of steps with a rising rate")
    encoder_max_length: int | None = Field(
        None, ge=8, description="tokens; left out: 92 of an action, 512 of a story, as in Scruples"
    )
    encoder_trials: int = Field(0, ge=0, description="tries, from configs/ambiguity/search.yaml")


class Run(config.Run):
    """One run of the ambiguity study."""

    prompt: Prompt = Prompt()
    baselines: Baselines = Baselines()
    votes: Votes = Votes()
    endpoint: config.Endpoint = config.Endpoint()

    @property
    def served(self) -> bool:
        """A service that only chats can be asked as well."""
        return self.endpoint.url is not None
