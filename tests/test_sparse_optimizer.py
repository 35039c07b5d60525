# SPDX-License-Identifier: Apache-2.0
"""Tables that learn in the rows of a batch: dense Adam's numbers, SparseAdam's laziness, and no pass over all rows."""

import pytest
import torch
from conftest import Computes, from_text, refused, tabular_model, trained
from torch.utils._pytree import tree_leaves
from transformers import set_seed

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipForPreTraining, FlipProcessor, prepare_dataset
from flip_hf.training import optimization
from flip_hf.training.collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
from flip_hf.training.optimization import RowGradients, RowSparseOptimizer, make_optimizer, parameter_groups


KINDS = ["lazy_adamw", "rowwise_adagrad"]


def tables_of(model) -> list[torch.nn.Parameter]:
    head = getattr(model, "mtm_head", None)
    tables = [table.weight for table in model.flip.tabular.tables()]
    return tables if head is None else [*tables, head.feature_embeddings.weight, head.feature_bias]


def make_model(stage: int, processor, folder: str):
    """In stage 1 every feature is noise, so that each row of the output table is read in each step."""
    if stage == 2:
        return tabular_model(processor, backbone="deepfm", l2_coefficient=1e-3)
    model = from_text(FlipForPreTraining, folder, processor)
    first = model.config.num_reserved_features
    features = torch.arange(first, model.config.num_features)
    model.mtm_head.draw_noise = lambda fields, *given: features.expand(len(fields), -1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train_by_hand(model, batch: dict, args, max_norm: float) -> torch.Tensor:
    """Three steps on one batch; returns the norms of the gradients."""
    groups = parameter_groups(model, 1e-2, 1e-4, 0.01)
    optimizer, norms = make_optimizer(model, groups, torch.optim.AdamW, {}, args), []
    for _ in range(3):
        model(**batch).loss.backward()
        assert all(table.grad.is_sparse == (args.embedding_optim != "adamw") for table in tables_of(model))
        norms.append(torch.nn.utils.clip_grad_norm_(RowGradients(model).parameters(), max_norm))
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(norms)


@pytest.mark.parametrize("stage", [1, 2])
def test_where_all_rows_are_read_it_is_dense_adam(stage, processor, encoded, text_model_dir, stage_1, stage_2):
    make_args, rows = (stage_1, encoded["train"].select(range(64))) if stage == 1 else (stage_2, encoded["train"])
    collator = DataCollatorForFlipPreTraining(processor, seed=0) if stage == 1 else DataCollatorForFlipCTR(processor)
    batch = collator(rows.to_list())
    norms, weights = {}, {}
    for kind in ("adamw", "lazy_adamw"):
        model = make_model(stage, processor, text_model_dir).double().train()
        # stage 2's penalty is no part of the lazy one's norm: nothing is clipped there
        args = make_args(model, embedding_optim=kind).args
        norms[kind] = train_by_hand(model, batch, args, max_norm=0.05 if stage == 1 else 1e9)
        weights[kind] = model.state_dict()
    assert (norms["adamw"] > 0.05).all()
    if stage == 1:
        torch.testing.assert_close(norms["lazy_adamw"], norms["adamw"], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(weights["lazy_adamw"], weights["adamw"], rtol=1e-6, atol=1e-9)


def rows_read(steps: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Sparse gradients of some rows, one of them twice."""
    generator, gradients = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        ids = torch.randint(len(torch.empty(shape)), (4,), generator=generator)
        ids = torch.cat([ids, ids[:1]])
        values = torch.randn(5, *shape[1:], generator=generator)
        gradients.append(torch.sparse_coo_tensor(ids[None], values, shape, check_invariants=True))
    return gradients


def row_optimizer(table: torch.nn.Parameter, kind: str, **options) -> RowSparseOptimizer:
    rest = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    return RowSparseOptimizer(rest, [{"params": [table], "lr": 0.1, **options}], kind, eps=1e-30)


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(12, 3), (12,)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_learn_as_their_papers_say_and_those_unread_stay(kind, shape, l2):
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(shape))
    expected, sums = torch.nn.Parameter(table.detach().clone()), torch.zeros(12, *[1] * (len(shape) - 1))
    optimizer = row_optimizer(table, kind, l2=l2, num_reserved=3)
    reference = torch.optim.SparseAdam([expected], lr=0.1, eps=1e-30)
    for gradient in rows_read(6, shape):
        before, read = table.detach().clone(), gradient.coalesce().indices()[0]
        dense = gradient.to_dense()
        with torch.no_grad():
            penalty = torch.zeros(shape)
            penalty[read] = 2 * l2 * expected[read]
            penalty[:3] = 0.0
            dense += penalty
            if kind == "rowwise_adagrad":
                sums += dense.square().view(12, -1).mean(1).view_as(sums)
                expected[read] -= 0.1 * dense[read] / sums[read].sqrt()
            else:
                expected.grad = torch.sparse_coo_tensor(read[None], dense[read], shape, check_invariants=True)
                reference.step()
        table.grad = gradient
        optimizer.step()
        torch.testing.assert_close(table, expected)
        unread = ~torch.isin(torch.arange(12), read)
        assert torch.equal(table[unread], before[unread]) and not torch.equal(table, before)


def test_a_scaler_of_losses_scales_rows_back_and_leaves_a_step_that_overflowed_out():
    tables = [torch.nn.Parameter(torch.ones(12, 3)) for _ in range(2)]
    plain, scaled = (row_optimizer(table, "lazy_adamw") for table in tables)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for number, gradient in enumerate(rows_read(3, (12, 3))):
        if number == 1:
            tables[1].grad = gradient * torch.inf
            scaler.step(scaled)
            scaler.update()
        factor = scaler.get_scale()
        tables[0].grad, tables[1].grad = gradient.clone(), gradient * factor
        plain.step()
        scaler.step(scaled)
        scaler.update()
    assert factor == 512.0
    torch.testing.assert_close(*tables)


# views, and those that read or write the rows which they are given
BY_ROW = {"index_select", "index_copy_", "embedding", "gather", "detach", "select", "_sparse_coo_tensor_unsafe"}
BY_ROW |= {"searchsorted", "index"}


@pytest.mark.parametrize("kind", ["adamw", *KINDS])
@pytest.mark.parametrize("stage", [1, 2])
def test_no_operation_of_a_step_passes_over_all_rows(stage, kind, splits, tokenizer, text_model_dir, stage_1, stage_2):
    hashed = {"user_id": {"hash_buckets": 30_000}}
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"], field_options=hashed), tokenizer)
    rows = prepare_dataset(splits["train"].select(range(32)), processor)
    options = {"processing_class": processor, "train_dataset": rows, "eval_dataset": None, "save_strategy": "no"}
    options |= {"embedding_optim": kind, "per_device_train_batch_size": 8, "max_steps": 3}
    if stage == 1:
        trainer = stage_1(FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor), **options)
    else:
        trainer = stage_2(tabular_model(processor, backbone="deepfm"), **options)
    found = set()

    def look(function, given, made):
        """Notes what gets or makes something with a number for each row, once training has begun in earnest."""
        tensors = [one for one in tree_leaves((given, made)) if isinstance(one, torch.Tensor)]
        is_large = any(one.layout == torch.strided and max(one.shape, default=0) >= 30_000 for one in tensors)
        name = function._schema.name.removeprefix("aten::")
        if is_large and name not in BY_ROW and 1 <= trainer.state.global_step < 3:
            found.add(name)

    with Computes(look):
        trainer.train()
    assert ("index_add_" in found) if kind == "adamw" else not found, found


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing_and_no_other_kind_goes_on_from_a_checkpoint(kind, stage_2, processor, tmp_path):
    def run(batch_size, kind=kind, **resume):
        set_seed(0)
        options = {"embedding_optim": kind, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        options |= {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 32 // batch_size}
        model = tabular_model(processor, backbone="deepfm", l2_coefficient=1e-2)
        return trained(stage_2(model, eval_dataset=None, **options), **resume).model.state_dict()

    torch.testing.assert_close(run(8), run(32), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        run(32, "adamw", resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_auto_is_lazy_for_large_tables_and_adamw(stage_2, text_model_dir, processor, monkeypatch, caplog):
    def optimizer_of(model=None, **options):
        trainer = stage_2(model, **options)
        return trainer.create_optimizer(), trainer.model

    assert type(optimizer_of()[0]) is torch.optim.AdamW
    monkeypatch.setattr(optimization, "MIN_FEATURES_LAZY", processor.feature_extractor.num_features)
    optimizer, model = optimizer_of()
    assert f"embedding_optim='auto': lazy_adamw, for {model.config.num_features} features" in caplog.text
    assert isinstance(optimizer, RowSparseOptimizer) and model.flip.tabular.embeddings.sparse
    assert [group["name"] for group in optimizer.param_groups].count("tables") == 1
    optimizer, model = optimizer_of(model, embedding_optim="adamw")  # the same model, densely again
    assert type(optimizer) is torch.optim.AdamW and not model.flip.tabular.embeddings.sparse
    assert type(optimizer_of(optim="sgd")[0]) is torch.optim.SGD
    text = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="text")
    assert type(optimizer_of(text, embedding_optim="lazy_adamw")[0]) is torch.optim.AdamW
    refused("embedding_optim='lazy' is not one of auto, adamw, lazy_adamw", optimizer_of, embedding_optim="lazy")
