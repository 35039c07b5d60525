# SPDX-License-Identifier: Apache-2.0
"""Two models that join a language model and a tower in other ways, built of FLIP's parts, so that the study's trainer,
search and rows are theirs too. From scratch: neither has a stage 1.

Letters: B rows, T tokens, S slots, D size of a field's embedding, d_w of a text state.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from torch import nn

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor, prepare_dataset
from flip_hf.modeling_flip import FlipModel, FlipModelOutput


class TwoTexts(FlipModel):
    """One language model reads the two texts of a row, each without the other; a text begins as the row does."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> FlipModelOutput:
        text = (input_ids == input_ids[:, :1]).cumsum(1)  # (B, T): 1 in the first, 2 in the second and its pads
        sees = (text[:, None] == text[:, :, None]) & attention_mask[:, None].bool()  # (B, T, T)
        states = self.read_text(input_ids, sees[:, None])[0]
        vectors = [self.pool_text(states, attention_mask * (text == number)) for number in (1, 2)]
        return FlipModelOutput(text_vector=torch.cat(vectors, -1))  # (B, 2 d_w)


class CTRBert(FlipForCTR):
    """CTR-BERT (Muhamed et al., NeurIPS 2021 workshop ENLSP), its two towers of text: the user's and the item's, each
    by itself, and a network over both."""

    _auto_class = None  # its folders are of this study

    def __init__(self, config: FlipConfig, text_model: Any = None):
        super().__init__(config)
        self.flip = TwoTexts(config, text_model, towers="text")
        size = config.text_config.hidden_size
        self.text_classifier = nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(), nn.Linear(size, 1))
        self.post_init()


class ItemsByText(FlipModel):
    """An ID tower in which one field's embedding is what its text says, and that field has no weight of its own."""

    def __init__(self, config: FlipConfig, text_model: Any = None):
        super().__init__(config, text_model, towers="joint", add_logit_layers=True)
        self.slot: int = -1
        self.project = nn.Linear(config.text_config.hidden_size, config.feature_embedding_size)
        self.tabular.embeddings.register_forward_hook(self._with_text)
        if self.tabular.first_order is not None:
            self.tabular.first_order.register_forward_hook(self._without_weight)
        self.post_init()

    def _with_text(self, module: Any, inputs: Any, embeddings: torch.Tensor) -> torch.Tensor:
        parts = (embeddings[:, : self.slot], self._items[:, None], embeddings[:, self.slot + 1 :])
        return torch.cat(parts, 1)  # (B, S, D)

    def _without_weight(self, module: Any, inputs: Any, weights: torch.Tensor) -> torch.Tensor:
        is_kept = torch.arange(weights.shape[1], device=weights.device) != self.slot
        return weights * is_kept[:, None]  # (B, S, 1)

    def forward(
        self, feature_ids: Any = None, input_ids: Any = None, attention_mask: Any = None, **others: Any
    ) -> FlipModelOutput:
        self._items = self.project(self.encode_text(input_ids, attention_mask)[1])  # (B, D)
        vector, logits = self.tabular(feature_ids)
        return FlipModelOutput(tabular_vector=vector, tabular_logits=logits)


class MoRec(FlipForCTR):
    """MoRec (Yuan et al., arXiv 2303.13835): the item's id embedding gives way to a language model that reads the
    item's text and is trained with the rest."""

    _auto_class = None

    def __init__(self, config: FlipConfig, text_model: Any = None):
        config.tabular_bce_weight = config.text_bce_weight = 0.0  # the towers have one logit together
        super().__init__(config)
        del self.text_classifier, self.fusion
        self.flip = ItemsByText(config, text_model)

    def combine(self, tabular_vector: Any, tabular_logits: Any, text_vector: Any) -> tuple[Any, Any, Any]:
        return tabular_logits, None, None


RIVALS: dict[str, type[FlipForCTR]] = {"ctr-bert": CTRBert, "morec": MoRec}


def build_rival(
    spec: dict[str, Any], prepared: Path, rows: DatasetDict, text_model: str, processor: FlipProcessor, **config: Any
) -> tuple[FlipForCTR, DatasetDict]:
    """A rival, and the rows with the texts that it reads: the user's fields and the others, or the item's words."""
    data, fields = json.loads((prepared / "config.json").read_text())["data"], processor.feature_extractor
    of_user = spec["model"]["user_fields"]
    model: Any = RIVALS[spec["model"]["rival"]].from_text_pretrained(text_model, processor=processor, **config)
    if isinstance(model, MoRec):
        model.flip.slot = fields.slot_fields.index(fields.field_names.index(data["slices"]["item"]))
        texts = [[name for name in data["text_fields"] if name not in of_user]]
    else:
        texts = [of_user, [name for name in fields.field_names if name not in of_user]]
    return model, with_texts(rows, load_from_disk(str(prepared / "tables")), processor, texts)


def with_texts(
    rows: DatasetDict, tables: DatasetDict, processor: FlipProcessor, texts: Sequence[Sequence[str]]
) -> DatasetDict:
    """Encoded rows whose text is that of `texts`, of each by itself, one behind the other."""
    encoded = []
    for fields in texts:
        extractor = FlipFeatureExtractor.fit(tables["train"], fields=fields)
        reader = FlipProcessor(extractor, processor.tokenizer, max_length=processor.max_length)
        encoded.append(prepare_dataset(tables, reader).with_format("numpy"))
    found = DatasetDict()
    for name, split in rows.items():
        parts = zip(*(other[name]["input_ids"][:] for other in encoded), strict=True)
        tokens = [np.concatenate(row) for row in parts]
        split = split.remove_columns(["input_ids", "attention_mask", "token_field_ids"])
        split = split.add_column("input_ids", tokens)
        found[name] = split.add_column("attention_mask", [np.ones_like(row) for row in tokens])
    return found
