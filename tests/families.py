"""Tiny random models of the papers' families: their architectures and their tokenizers' structure.

What differs between families is what breaks a pipeline: who writes the beginning of the text, what
stands for a blank, which token pads, how attention is laid out. Each is made in a moment, with
weights too random to say anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from tokenizers import trainers as train

TEXTS = [
    "Statement: I gave the money back to the shop. The statement is ethical. It was not mine.",
    "Statement: I usually help my friend, but today I lied. The statement is unethical.",
    "### Question: Evaluate whether the statement is ethical or not with reason. ### Answer:",
    "### Instruction: ### Input: ### Response: Which of these two actions is less ethical?",
    "First: keeping it. Second: telling nobody. Answer with one word, first or second. Answer:",
    "Answer the question. If you don't know the answer to the question, it is appropriate to say",
    "I apologize, but I'm not able to provide an answer to the question. Q: Who wrote it? A: Yes",
    "Is this ethical or unethical? Answer with one word and a reason. Why is this unethical? no",
] * 3

# The chat templates of the families, cut down to a user's turn.
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    " [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QWEN2 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPECIAL = {
    "llama3": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|end_of_text|> <|eot_id|>",
    "qwen2": "<|endoftext|> <|im_start|> <|im_end|>",
}
CAUSAL = ("llama2", "llama3", "mistral-v1", "mistral-v3", "zephyr", "qwen2", "gemma3")
BYTES = [f"<0x{k:02X}>" for k in range(256)]
# The word pattern of Llama 3 and Qwen 2: digits and line breaks stand apart from words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make(family: str, folder: Path) -> Path:
    """A model of one of ``CAUSAL``, or ``bert`` or ``roberta``, in a folder of its own."""
    folder.mkdir(parents=True)
    {"bert": _bert, "roberta": _roberta}.get(family, _causal)(family, folder)
    return folder


def _causal(family: str, folder: Path) -> None:
    extra: dict[str, Any] = {}
    if family in ("llama3", "qwen2"):
        pieces = _byte_level()
        names = SPECIAL[family].split()
        pieces.add_special_tokens(names)
        extra = {"bos_token": names[0], "eos_token": names[-1]}
        if family == "llama3":
            _begins(pieces, names[0])
            extra |= {"chat_template": LLAMA3, "tokenizer_class": "PreTrainedTokenizerFast"}
        else:
            extra |= {"chat_template": QWEN2, "tokenizer_class": "Qwen2TokenizerFast"}
            extra |= {"bos_token": None, "pad_token": names[0]}
    elif family == "gemma3":
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        pieces = _sentence_piece(special, [normalizers.Replace(" ", "▁")])
        pieces.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        _begins(pieces, "<bos>")
        extra = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        extra |= {"unk_token": "<unk>", "chat_template": GEMMA}
        extra |= {"tokenizer_class": "GemmaTokenizerFast"}
    else:
        control = ["[INST]", "[/INST]"] if family == "mistral-v3" else []
        special = ["<unk>", "<s>", "</s>", *control]
        prefix = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        pieces = _sentence_piece(special, prefix if family != "mistral-v3" else [])
        if family == "mistral-v3":
            pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        _begins(pieces, "<s>")
        extra = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        extra |= {"tokenizer_class": "LlamaTokenizerFast"}
        extra["chat_template"] = ZEPHYR if family == "zephyr" else LLAMA2
        extra |= {"pad_token": "</s>"} if family == "zephyr" else {}
    rows = pieces.get_vocab_size()
    if family == "llama2":  # as its copy on the Hub has it: a pad token behind the embedding
        pieces.add_special_tokens(["<pad>"])
        extra["pad_token"] = "<pad>"
    _tokenizer(pieces, folder, **extra)
    ids = {k: pieces.token_to_id(extra.get(f"{k}_token") or "") for k in ("bos", "eos")}
    shape: dict[str, Any] = {"vocab_size": rows, "hidden_size": 64, "intermediate_size": 128}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"max_position_embeddings": 4096, "pad_token_id": None, "head_dim": 16}
    shape |= {f"{k}_token_id": value for k, value in ids.items()}
    name = {"llama2": "Llama", "llama3": "Llama", "qwen2": "Qwen2", "gemma3": "Gemma3Text"}
    if name.get(family) == "Qwen2":
        del shape["head_dim"]
    if family == "gemma3":  # one layer sees a window, one sees everything
        shape |= {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    if family in ("mistral-v1", "zephyr"):
        shape |= {"sliding_window": 32}
    config = getattr(transformers, f"{name.get(family, 'Mistral')}Config")(**shape)
    _save(transformers.AutoModelForCausalLM.from_config(config), folder)


def _byte_level() -> Tokenizer:
    pieces = Tokenizer(kinds.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.pre_tokenizer = pre_tokenizers.Sequence([words, spelt])
    pieces.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces.train_from_iterator(
        TEXTS, train.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return pieces


def _sentence_piece(special: list[str], normal: list[Any]) -> Tokenizer:
    """BPE without words, with bytes for what it does not know, as SentencePiece has it."""
    first = Tokenizer(kinds.BPE(unk_token="<unk>"))
    first.pre_tokenizer = pre_tokenizers.Metaspace()
    reserved = [*special, *BYTES]
    first.train_from_iterator(
        TEXTS, train.BpeTrainer(vocab_size=480, special_tokens=reserved, show_progress=False)
    )
    found = json.loads(first.to_str())["model"]
    merges = [tuple(pair) for pair in found["merges"]]
    model = kinds.BPE(found["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    pieces = Tokenizer(model)
    if normal:
        pieces.normalizer = normalizers.Sequence(normal)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    pieces.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    pieces.add_special_tokens(special)
    return pieces


def _begins(pieces: Tokenizer, token: str) -> None:
    pieces.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, pieces.token_to_id(token))],
    )


def _tokenizer(pieces: Tokenizer, folder: Path, **settings: Any) -> None:
    pieces.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 4096, "clean_up_tokenization_spaces": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _save(model: Any, folder: Path) -> None:
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:  # livelier than at a start of training, so that words depend on it
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)


def _bert(family: str, folder: Path) -> None:
    pieces = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(
        TEXTS, train.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    ends = [(name, pieces.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)
    _tokenizer(
        pieces, folder, tokenizer_class="BertTokenizerFast", **{f"{k}_token": v for k, v in names}
    )
    _encoder("Bert", pieces.get_vocab_size(), folder, pad_token_id=0)


def _roberta(family: str, folder: Path) -> None:
    pieces = _byte_level()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces.add_special_tokens(special)
    ids = {name: pieces.get_vocab()[name] for name in special}
    pieces.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"])
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>"}
    names |= {"unk": "<unk>", "mask": "<mask>"}
    _tokenizer(
        pieces,
        folder,
        tokenizer_class="RobertaTokenizerFast",
        **{f"{k}_token": v for k, v in names.items()},
    )
    _encoder("Roberta", pieces.get_vocab_size(), folder, pad_token_id=ids["<pad>"])


def _encoder(name: str, rows: int, folder: Path, **more: Any) -> None:
    shape: dict[str, Any] = {"vocab_size": rows, "hidden_size": 32, "intermediate_size": 64}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1030}
    _save(
        getattr(transformers, f"{name}Model")(
            getattr(transformers, f"{name}Config")(**shape, **more)
        ),
        folder,
    )
