"""Settings of the reasons study: what it has beyond the blocks that all studies share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ethalign import config
from ethalign.config import Section

Label = Literal["ethical", "unethical"]


class Columns(Section):
    """Names of the columns in the user's own CSV."""

    statement: str = Field("Statement", description="column with the texts, in a CSV of your own")
    label: str = Field("Label", description="column with their labels")
    reason: str = Field("Reason", description="column with their reasons; may be missing")


class Data(config.Data):
    """Which rows a run sees, and how they are read."""

    columns: Columns = Columns()
    labels: dict[str, Label] = Field(
        {"0": "ethical", "1": "unethical", "ethical": "ethical", "unethical": "unethical"},
        description="label values of the file and what they mean",
    )
    cross: bool = Field(True, description="also test on ETHOS (or the sample comments)")
    drop_shared: bool = Field(
        False, description="train without the statements that are in the test file"
    )
    repair_encoding: bool = Field(True, description="mend the test file's double encoding")


class Prompt(Section):
    """How a statement is put to the model."""

    template: Literal["plain", "chat", "dfar-llama", "dfar-mistral"] = Field(
        "plain", description="wording of the question; the last two are the authors'"
    )
    target: Literal["label", "label-reason", "reason-label"] = Field(
        "label", description="what a model learns to answer, and in which order"
    )
    literal_bos: bool = Field(False, description="write <s> into the text (Mistral notebooks)")


class Evaluation(config.Evaluation):
    """Scoring and generating."""

    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of a text, at most; null: what 99 % of human reasons need"
    )
    temperature: float = Field(0.0, ge=0, description="temperature of answers; 0 is greedy")
    generate: bool = Field(True, description="write answers; false: log-probabilities only")
    limit_generate: int | None = Field(None, ge=0, description="write answers for this many items")
    threshold_rows: int = Field(
        200, ge=1, description="training rows that set the threshold of the corrected verdict"
    )


class Baselines(config.Encoder):
    """Classifiers, the encoder and the learned judge."""

    folds: int = Field(10, ge=2, description="folds of the cross-validation on ETHOS")
    judge_epochs: int = Field(3, ge=1, description="passes of the judge over its pairs")
    judge_rows: int | None = Field(None, ge=8, description="training statements for the judge")


class Run(config.Run):
    """One run of the reasons study."""

    data: Data = Data()
    prompt: Prompt = Prompt()
    evaluation: Evaluation = Evaluation()
    endpoint: config.Endpoint = config.Endpoint()
    baselines: Baselines = Baselines()
