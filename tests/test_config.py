from __future__ import annotations

import html
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ethalign import config, reference, study
from ethalign.config import UserError


def test_every_variant_resolves_at_every_scale() -> None:
    for name in config.studies():
        for variant in config.variants(name):
            for scale in config.read_yaml(config.ROOT / "configs" / name / "scales.yaml"):
                run = config.resolve(name, variant, scale)
                assert (run.study, run.variant, run.scale) == (name, variant, scale)


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        ({"tuning.lr": "fast"}, "tuning.lr"),
        ({"tuning.lrr": 1.0}, "did you mean 'tuning.lr'"),
        ({"tunning.lr": 1.0}, "did you mean 'tuning"),
        ({"tuning.epochs": 0}, "tuning.epochs"),
        ({"tuning.epochs": 1.5}, "tuning.epochs"),
        ({"data.source": "internet"}, "data.source"),
        ({"data.labels.x": "evil"}, "ethical"),
        ({"tuning": 3}, "tuning"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_hint(overrides: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        config.resolve("reasons", "L", overrides=overrides)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("reason", "L"), "did you mean 'reasons'"),
        (("reasons", "LRR"), "did you mean 'LR'"),
        (("reasons", "L", "tinny"), "did you mean 'tiny'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(
    arguments: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        config.resolve(*arguments)  # type: ignore[arg-type]


def test_overrides_win_over_scale_and_scale_over_variant() -> None:
    assert config.resolve("reasons", "L", "smoke").tuning.epochs == 1
    assert (
        config.resolve("reasons", "L", "smoke", overrides={"tuning.epochs": 3}).tuning.epochs == 3
    )


def test_own_label_values_come_on_top_of_the_default_ones() -> None:
    run: Any = config.resolve("reasons", "L", overrides={"data.labels.bad": "unethical"})
    labels = run.data.labels
    assert labels["bad"] == "unethical"
    assert labels["0"] == "ethical"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1e-5", 1e-5),
        ("a.b=1.0e-5", 1e-5),
        ("a.b=3", 3),
        ("a.b=null", None),
        ("a.b=x=y", "x=y"),
    ],
)
def test_settings_of_the_command_line_have_the_type_a_person_means(text: str, value: Any) -> None:
    assert config.parse_setting(text) == ("a.b", value)


def test_a_setting_without_a_sign_is_refused() -> None:
    with pytest.raises(UserError, match="key=value"):
        config.parse_setting("tuning.lr")


def test_a_stage_depends_on_its_own_parameters_only() -> None:
    def depends(stage: str, **overrides: Any) -> Any:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return study.job("reasons", stage, "L", "smoke", overrides=dotted).fingerprint()

    for stage in ("baselines", "finetune", "evaluate"):
        assert depends(stage) == depends(stage), "nothing but settings, data and code counts"
    assert depends("finetune") != depends("finetune", tuning__epochs=3)
    assert depends("evaluate") != depends("evaluate", tuning__epochs=3), "it reads the adapter"
    assert depends("baselines") == depends("baselines", tuning__epochs=3)
    longer = {"evaluation__max_new_tokens": 9}
    assert depends("finetune") == depends("finetune", **longer)
    assert depends("evaluate") != depends("evaluate", **longer)


def test_a_resolved_run_survives_yaml() -> None:
    run = config.resolve("reasons", "LR", "paper")
    again = type(run).model_validate(yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json"))))
    assert again == run


@given(st.dictionaries(st.sampled_from(["a.b", "a.c", "d"]), st.integers(), max_size=3))
def test_nested_keeps_every_value(dotted: dict[str, int]) -> None:
    tree = config.nested(dotted)
    for key, value in dotted.items():
        found: Any = tree
        for part in key.split("."):
            found = found[part]
        assert found == value


@pytest.mark.parametrize("name", config.studies())
def test_every_parameter_has_a_meaning_that_stands_by_itself(name: str) -> None:
    """In a table, where neither the name of the block nor that of a neighbour explains it."""
    told: dict[str, str] = {}
    for key, *_, about in config.parameters(study.find(name).run):
        if key in ("study", "variant", "scale", "seed"):  # coordinates, which are not in it
            continue
        assert len(re.findall(r"\w+", about)) > 2, f"{key}: {about!r}"
        assert not re.match(r"(of|before|after|where|false|true|auto)\b", about), (
            f"{key}: {about!r}"
        )
        assert not about.endswith("."), key
        assert about not in told, f"{key} is said to be what {told.get(about)} is"
        told[about] = key


def test_markup_in_a_meaning_is_shown_and_not_followed() -> None:
    shown = html.unescape(MarkdownIt().enable("table").render(reference.parameter_table()))
    assert "write <s> into the text" in shown
    assert "&lt;s&gt; into" in MarkdownIt().enable("table").render(reference.parameter_table())


def test_paper_scales_hold_the_authors_settings() -> None:
    """Beyond Labels, the hyperparameters of the authors' four notebooks."""
    runs: list[Any] = [config.resolve("reasons", "LR", s) for s in ("paper", "paper-mistral")]
    llama, mistral = runs
    for run in (llama, mistral):
        t = run.tuning
        assert (t.lora_r, t.lora_alpha, t.lora_dropout, t.lora_targets) == (
            64,
            16,
            0.1,
            "default",
        )
        assert (t.epochs, t.batch_size, t.lr, t.schedule) == (10, 4, 2e-4, "constant")
        assert (t.weight_decay, t.max_grad_norm, t.optimizer) == (
            0.001,
            0.3,
            "paged_adamw_32bit",
        )
        assert (t.loss, run.model.quantization) == ("sequence", "nf4")
    assert not llama.model.double_quantization
    assert mistral.model.double_quantization
    assert mistral.tuning.packing
    assert mistral.prompt.literal_bos
    assert mistral.model.tokenizer.partition("@")[0] == "mistralai/Mistral-7B-v0.1"


def test_the_models_of_a_paper_differ_in_nothing_but_the_model() -> None:
    for name, others in {
        "ambiguity": ("paper-llama3", "paper-zephyr"),
        "honesty": ("paper-7b", "paper-70b"),
    }.items():
        variant = config.variants(name)[0]
        plain, *rest = (config.resolve(name, variant, scale) for scale in ("paper", *others))
        assert len({run.model.id for run in (plain, *rest)}) == 3
        for run in rest:
            same = {"id": plain.model.id, "revision": plain.model.revision}
            again = run.model_copy(
                update={"scale": "paper", "model": run.model.model_copy(update=same)}
            )
            assert again == plain


def test_what_is_fetched_from_the_hub_is_pinned_where_its_commit_is_known() -> None:
    unknown = {"NousResearch/Llama-2-13b-chat-hf", "NousResearch/Llama-2-70b-chat-hf"}
    hub = {"model.id", "model.tokenizer", "baselines.encoder", "honesty.judge_model"}
    for name in config.studies():
        for scale in config.read_yaml(config.ROOT / "configs" / name / "scales.yaml"):
            run = config.resolve(name, config.variants(name)[0], scale)
            known = {key for key, *_ in config.parameters(type(run))} & hub
            for key, found in run.values(known).items():
                _, _, commit = (found or "").partition("@")
                commit = commit or (run.model.revision if key == "model.id" else "")
                free = not found or "/" not in found or found in unknown
                assert free or re.fullmatch(r"[0-9a-f]{40}", commit or ""), (name, scale, key)
