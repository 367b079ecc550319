from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ethalign import generation, scoring
from ethalign.models import Loaded

PROMPTS = ["Q: one?\nA:", "Q: a good deal longer than the first one?\nA:", "Q:", "Q: four\nA:"]
CHOICES = [" yes", " no", " perhaps so", "x"]


def plain(loaded: Loaded, prompt: str, choice: str) -> float:
    """One forward pass over prompt and choice, nothing shared."""
    before = loaded.tokenizer(prompt)["input_ids"]
    answer = loaded.tokenizer(choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logp = loaded.model(torch.tensor([before + answer])).logits.log_softmax(-1)[0]
    return sum(float(logp[len(before) - 1 + k, token]) for k, token in enumerate(answer))


def test_scores_are_those_of_plain_forward_passes(tiny: Loaded) -> None:
    found = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, CHOICES, batch_size=3)
    expected = [[plain(tiny, p, c) for c in CHOICES] for p in PROMPTS]
    assert found.shape == (4, 4)
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("choices", [[" yes", " no", " perhaps so"], ["x", "y"]])
def test_what_all_prompts_begin_with_is_read_once(
    tiny: Loaded, choices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = "Which of the two would most people call the better one? "
    asked = [opening + text for text in ("To lie.", "To wait for a friend.", "No.", "To go")]
    expected = [[plain(tiny, p, c) for c in choices] for p in asked]
    read: list[tuple[int, ...]] = []
    whole = scoring.backbone

    def backbone(model: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        read.append(tuple(ids.shape))
        return whole(model, ids, *rest, **more)

    monkeypatch.setattr(scoring, "backbone", backbone)
    found = scoring.choice_logprobs(tiny.model, tiny.tokenizer, asked, choices, batch_size=4)
    assert np.allclose(found, expected, atol=1e-5)
    opened, longest = (len(tiny.tokenizer(text)["input_ids"]) for text in (opening, asked[1]))
    assert read[:2] == [(1, opened), (4, longest - opened)]
    alone = [scoring.choice_logprobs(*tiny[:2], [p], choices)[0] for p in asked]
    assert np.allclose(found, alone, atol=1e-5)


def test_a_window_of_attention_is_never_read_in_two_parts() -> None:
    rows = [[1] * 12 + [2], [1] * 12 + [3, 4]]
    text = transformers.Gemma3TextConfig(sliding_window=20)
    whole = transformers.Gemma3Config(text_config=text)  # of text and images
    narrow = SimpleNamespace(config=whole)
    assert scoring.shared(narrow, rows, 6) == [1] * 12
    assert scoring.shared(narrow, rows, 7) == []


def test_single_token_choices_sum_to_one_over_the_vocabulary(tiny: Loaded) -> None:
    letters = [chr(c) for c in range(33, 127)]
    logp = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS[:1], letters)
    assert 0 < np.exp(logp).sum() < 1
    assert (logp < 0).all()


def test_batch_size_and_order_do_not_matter(tiny: Loaded) -> None:
    one = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, CHOICES, batch_size=1)
    turned = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS[::-1], CHOICES)[::-1]
    assert np.allclose(one, turned, atol=1e-5)


def test_an_empty_choice_is_refused_and_no_prompts_are_no_rows(tiny: Loaded) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, [""])
    with pytest.raises(ValueError, match="at least one token"):
        generation.write(tiny.model, tiny.tokenizer, PROMPTS, choices=[" yes", ""])
    assert scoring.choice_logprobs(tiny.model, tiny.tokenizer, [], CHOICES).shape == (0, 4)


@pytest.mark.parametrize(
    ("family", "special"),
    [
        ("Llama", {}),
        ("Gemma2", {"final_logit_softcapping": 5.0, "head_dim": 8}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Granite", {"logits_scaling": 4.0}),
    ],
)
def test_logits_of_hidden_states_are_those_of_the_model(
    family: str, special: dict[str, Any]
) -> None:
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**shape, **heads, **special)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    asked = scoring.left_pad([[5, 6, 7, 8], [9, 10]], 0, "cpu")
    with torch.no_grad():
        wanted = model(asked.ids, asked.mask, asked.position).logits[:, -2:]
        hidden, _ = scoring.backbone(model, *asked)
        assert torch.allclose(scoring.logits(model, hidden[:, -2:]), wanted, atol=1e-5)
        found = scoring.Head(model)(hidden[:, -2:])
    assert torch.allclose(found, wanted.log_softmax(-1), atol=1e-5)


def test_threads_move_a_log_probability_by_less_than_a_near_tie(tiny: Loaded) -> None:
    """By which greedy texts are told apart; half precision moves it by more."""
    torch.manual_seed(0)
    shape: Any = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
    size: Any = {"vocab_size": len(tiny.tokenizer), "num_attention_heads": 4}
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **size))
    for weight in model.model.layers.parameters():  # so that much is summed up
        weight.data.mul_(3 if weight.dim() == 2 else 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads, dtype in ((1, "float32"), (2, "float32"), (2, "bfloat16")):
            torch.set_num_threads(threads)
            asked = model.to(getattr(torch, dtype)).eval(), tiny.tokenizer
            found.append(scoring.choice_logprobs(*asked, PROMPTS, CHOICES))
    finally:
        torch.set_num_threads(before)
    assert abs(found[1] - found[0]).max() < generation.NEAR < abs(found[2] - found[0]).max()
