# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo): instance contrast and row-sparse tables as in one process on the joined batch."""

from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from transformers import BertConfig

from flip_hf import FlipConfig, FlipForCTR
from flip_hf.alignment_layers_flip import FlipICLHead
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.sparse_optimizer import RowGradients, make_optimizer


CUTS = {"equal ranks": [0, 3, 6], "unequal ranks": [0, 2, 7]}


def make_head() -> FlipICLHead:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_config = BertConfig(vocab_size=11, **sizes)
    torch.manual_seed(0)
    config = FlipConfig(fields=[{"name": "a"}], num_features=9, text_config=text_config)
    return FlipICLHead(config, tabular_size=6).eval()


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 6, generator=generator), torch.randn(7, 8, generator=generator)


def lazy_tables(rows: slice, world_size: int) -> dict[str, list]:
    """Weights after three steps on these rows of each batch, clipped."""
    torch.manual_seed(0)
    model = FlipForCTR(FlipConfig(fields=[{"name": "a"}, {"name": "b"}], num_features=30, mode="tabular"))
    args = SimpleNamespace(embedding_optim="lazy_adamw", adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
    args.world_size = world_size
    optimizer = make_optimizer(model, parameter_groups(model, 0.01, 0.01, 0.0), torch.optim.AdamW, {}, args)
    trained = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        ids = torch.randint(4, 30, (8, 2), generator=generator)
        trained(ids[rows], labels=(ids[rows, 0] % 2).float()).loss.backward()
        assert all(table.weight.grad.is_sparse for table in model.flip.tabular.tables())
        nn.utils.clip_grad_norm_(RowGradients(model).parameters(), 0.1)
        optimizer.step()
        model.zero_grad()
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def worker(rank: int, init_file: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    for name, cuts in CUTS.items():
        head = nn.parallel.DistributedDataParallel(make_head())
        vectors, texts = make_rows()
        part = slice(cuts[rank], cuts[rank + 1])
        loss, _ = head(vectors[part], texts[part])
        loss.backward()
        gradients = {key: parameter.grad.tolist() for key, parameter in head.module.named_parameters()}
        results[name, rank] = (loss.item(), gradients)
    results["tables", rank] = lazy_tables(slice(4 * rank, 4 * rank + 4), 2)
    torch.distributed.destroy_process_group()


def test_two_ranks_learn_what_one_process_learns_on_the_joined_batch(tmp_path):
    results = mp.Manager().dict()
    # forked: nothing is imported again
    mp.start_processes(worker, args=(str(tmp_path / "init"), results), nprocs=2, start_method="fork")
    for name, cuts in CUTS.items():
        head = make_head()
        vectors, texts = make_rows()
        loss, _ = head(vectors[: cuts[-1]], texts[: cuts[-1]])
        loss.backward()
        assert (results[name, 0][0] + results[name, 1][0]) / 2 == pytest.approx(loss.item(), rel=1e-5)
        for key, parameter in head.named_parameters():
            for rank in (0, 1):
                gradient = torch.tensor(results[name, rank][1][key])
                message = f"{key} on rank {rank}, {name}"
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=message)
    expected = lazy_tables(slice(8), 1)
    for rank in (0, 1):
        for name, values in results["tables", rank].items():
            torch.testing.assert_close(torch.tensor(values), torch.tensor(expected[name]), rtol=1e-4, atol=1e-6)
