"""A tiny SentenceTransformer, its sentences and a trainer around them, for the tests of the trainer's parts."""

from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel

from mc_text_code.encoders import quiet_loading
from mc_text_code.tokenizers import train_tokenizer
from mc_text_code.trainer import ESimCSECallback, ESimCSECollator, ESimCSELoss

NOUNS = ["boat", "house", "hill", "river", "garden", "road"]
SENTENCES = [
    f"the {NOUNS[i % 6]} {'stands' if i % 2 else 'lies'} beside the {NOUNS[i // 6 % 6]}" + f" of number {i}" * (i % 3)
    for i in range(48)
]


def write_bert(folder: Path, dropout: float = 0.1) -> Path:
    """A folder as published ones are."""
    tokenizer = train_tokenizer(SENTENCES, 200, positions=64)
    torch.manual_seed(3)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with quiet_loading():
        bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def open_model(folder: Path, **options: object) -> SentenceTransformer:
    with quiet_loading():
        model = SentenceTransformer(
            modules=[Transformer(str(folder), **options), Pooling(16, pooling_mode="cls")], device="cpu"
        )
    model.max_seq_length = 16
    return model


def build(
    folder: Path,
    out: Path,
    *,
    loss: dict[str, object] | None = None,
    sentences: list[str] | None = None,
    **options: object,
) -> SentenceTransformerTrainer:
    """A trainer of 4 sentences per step that reports every loss; ``options`` are training arguments or, by name, its own."""
    own = {
        name: options.pop(name)
        for name in ("eval_dataset", "evaluator", "data_collator", "callbacks")
        if name in options
    }
    model = options.pop("model", None) or open_model(folder)
    torch.manual_seed(int(options.pop("head_seed", 7)))
    made = ESimCSELoss(model, **{"queue_size": 10, **(loss or {})})
    callbacks = [ESimCSECallback(made), *own.pop("callbacks", [])]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "seed": 5,
            **options,
        },
    )
    return SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"sentence": sentences or SENTENCES}),
        loss=made,
        data_collator=own.pop("data_collator", None) or ESimCSECollator.of(model, seed=5),
        callbacks=callbacks,
        **own,
    )


def losses(trainer: SentenceTransformerTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
