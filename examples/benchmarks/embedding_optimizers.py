# SPDX-License-Identifier: Apache-2.0
"""Seconds of a training step and bytes of an id for each `embedding_optim`, from ten thousand ids to ten million.

    python examples/benchmarks/embedding_optimizers.py

A step is forward, backward, gradient norm and clipping, update and `zero_grad` on invented rows, whose ids are drawn
evenly: no id is frequent, the worst there is for a cache. Stage 2 is FLIP_ID with the L2 penalty; stage 1 has a
language model of one small layer, so that the tables weigh as much as they can. After each step the same step is made
on a model of `--num_ids`' first size with `"lazy_adamw"`, and the ratio to it is the median over these pairs, which
leaves out whatever else the machine does. Bytes are of weights, gradients and state, for one id of all tables.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import BertConfig

from flip_hf import FlipConfig, FlipCTRArguments, FlipForCTR, FlipForPreTraining
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.sparse_optimizer import RowGradients, make_optimizer


NUM_TOKENS = 40
KINDS = ["lazy_adamw", "rowwise_adagrad", "adamw"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_ids", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 1], choices=[1, 2])
    parser.add_argument(
        "--batch_size", type=int, nargs=2, default=[64, 512], help="Rows of a step, in stages 1 and 2."
    )
    parser.add_argument("--num_fields", type=int, default=10)
    parser.add_argument("--embedding_size", type=int, default=32, help="Numbers in an id's embedding.")
    parser.add_argument("--steps", type=int, default=20, help="Timed steps (three more warm up).")
    parser.add_argument("--max_gb", type=float, default=8.0, help="What would take more is left out.")
    parser.add_argument("--threads", type=int, default=2, help="torch threads.")
    return parser.parse_args()


class Training:
    """One model and its steps."""

    def __init__(self, stage: int, kind: str, num_ids: int, arguments: argparse.Namespace):
        fields = [{"name": f"f{k}"} for k in range(arguments.num_fields)]
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
        text = BertConfig(vocab_size=1000, **sizes)
        size = {"feature_embedding_size": arguments.embedding_size, "mtm_embedding_size": arguments.embedding_size}
        config = FlipConfig(fields=fields, num_features=num_ids, text_config=text, mode="tabular", **size)
        torch.manual_seed(0)
        self.model = (FlipForPreTraining if stage == 1 else FlipForCTR)(config).train()
        self.shape = (arguments.batch_size[stage - 1], arguments.num_fields)
        self.stage, self.arguments = stage, arguments
        with tempfile.TemporaryDirectory() as folder:
            args = FlipCTRArguments(folder, embedding_optim=kind, use_cpu=True)
        groups = parameter_groups(self.model, 1e-3, 1e-4, 1e-3)
        self.optimizer = make_optimizer(self.model, groups, torch.optim.AdamW, {"fused": True}, args)

    def batch(self) -> dict[str, torch.Tensor]:
        config = self.model.config
        ids = torch.randint(config.num_reserved_features, config.num_features, self.shape)
        if self.stage == 2:
            return {"feature_ids": ids, "labels": torch.randint(2, self.shape[:1]).float()}
        tokens = torch.randint(10, 1000, (self.shape[0], NUM_TOKENS))
        masked = torch.where(torch.rand(tokens.shape) < 0.15, 4, tokens)
        hidden = torch.where(torch.rand(ids.shape) < 0.15, 1, ids)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "masked_input_ids": masked}
        return {**inputs, "feature_ids": ids, "masked_feature_ids": hidden}

    def step(self) -> float:
        batch = self.batch()
        start = time.perf_counter()
        self.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(RowGradients(self.model).parameters(), 1.0)
        self.optimizer.step()
        seconds = time.perf_counter() - start
        self.bytes_of_gradients = sum(
            p.grad.numel() * p.grad.element_size()
            for p in self.tables()
            if p.grad is not None and not p.grad.is_sparse
        )
        start = time.perf_counter()
        self.model.zero_grad()
        return seconds + time.perf_counter() - start

    def tables(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if len(p) == self.model.config.num_features]

    def bytes_of_an_id(self) -> float:
        states = [one for p in self.tables() for one in self.optimizer.state[p].values() if one.dim()]
        held = sum(one.numel() * one.element_size() for one in [*self.tables(), *states])
        return (held + self.bytes_of_gradients) / self.model.config.num_features


def measure(training: Training, pace: Callable[[], float], steps: int) -> tuple[float, float]:
    """Median seconds of a step, and of its ratio to the pace maker's."""
    pairs = [(training.step(), pace()) for _ in range(steps + 3)][3:]
    return statistics.median(ours for ours, _ in pairs), statistics.median(ours / other for ours, other in pairs)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.num_fields} fields, embeddings of "
        f"{arguments.embedding_size}"
    )
    for stage in arguments.stages:
        pace = Training(stage, "lazy_adamw", arguments.num_ids[0], arguments)
        print(
            f"stage {stage}, {pace.shape[0]} rows: ids, optimiser, ms of a step, times the first size's, bytes an id"
        )
        for num_ids in arguments.num_ids:
            for kind in KINDS:
                numbers = (arguments.embedding_size + 1) * {1: 2, 2: 1}[stage] * num_ids
                if numbers * 4 * {"adamw": 4, "lazy_adamw": 3, "rowwise_adagrad": 1}[kind] > arguments.max_gb * 1e9:
                    continue
                training = Training(stage, kind, num_ids, arguments)
                seconds, ratio = measure(training, pace.step, arguments.steps)
                print(
                    f"{num_ids:11,} {kind:16} {1000 * seconds:9.1f} {ratio:8.2f} {training.bytes_of_an_id():8.0f}",
                    flush=True,
                )
                del training
                gc.collect()


if __name__ == "__main__":
    main()
