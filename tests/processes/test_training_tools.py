"""Compiled models under what people train with: DDP, Accelerate, the Trainer of transformers; in eager torch beside."""

from __future__ import annotations

import pathlib

import pytest

from tests.processes.children import run

MODEL = """
    import copy
    import os
    import sys

    import torch
    from torch import nn

    import tpu_lowering

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.norm(nn.functional.gelu(self.first(x))))

    def make():
        torch.manual_seed(0)
        return Model()

    def close(one, other):
        pairs = list(zip(one.parameters(), other.parameters(), strict=True))
        assert pairs and all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs), pairs
        assert not torch.equal(pairs[0][0], next(make().parameters())), "nothing was learnt"
"""

DDP = """
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from torch.nn.parallel import DistributedDataParallel

    def train(model, rank, average):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            x, y = torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)
            nn.functional.mse_loss(model(x), y).backward()
            average()
            optimizer.step()
            optimizer.zero_grad()

    def work(rank, port, order):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        eager, own = make(), make()

        def average():
            for parameter in eager.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2

        train(eager, rank, average)
        if order == "compiled inside":
            model = DistributedDataParallel(torch.compile(own, backend="helion_tpu"))
        else:
            model = torch.compile(DistributedDataParallel(own), backend="helion_tpu")
        train(model, rank, lambda: None)
        close(eager, own)
        whole = [torch.zeros_like(own.first.weight) for _ in range(2)]
        dist.all_gather(whole, own.first.weight.detach())
        assert torch.equal(*whole)
        dist.destroy_process_group()

    if __name__ == "__main__":
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(work, args=(port, sys.argv[1] if len(sys.argv) > 1 else ORDER), nprocs=2)
        print("equal")
"""


@pytest.mark.parametrize("order", ["compiled inside", "compiled around"])
def test_two_ranks_of_data_parallel_training(order: str, tmp_path: pathlib.Path) -> None:
    """Gradients of two ranks are averaged; the model is compiled inside of DDP, or DDP with it, in buckets."""
    assert run(f"{MODEL}\n    ORDER = {order!r}\n{DDP}", tmp_path) == "equal\n"


ACCELERATE = """
    from accelerate import Accelerator

    data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.randn(12, 2))

    def trained(model, compiled):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = torch.utils.data.DataLoader(data, batch_size=3)
        given, optimizer, loader = accelerator.prepare(compiled, optimizer, loader)
        for x, y in loader:
            with accelerator.accumulate(given):
                accelerator.backward(nn.functional.mse_loss(given(x), y))
                accelerator.clip_grad_norm_(given.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return model

    eager = make()
    trained(eager, eager)
    for in_place in (True, False):
        own = make()
        if in_place:
            own.compile(backend="helion_tpu")
        trained(own, own if in_place else torch.compile(own, backend="helion_tpu"))
        close(own, eager)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        print("equal")
"""


def test_accelerate(tmp_path: pathlib.Path) -> None:
    """Its own loop, with accumulation and clipping. Its list of backends is closed: models are compiled before, in
    place or not."""
    assert run(f"{MODEL}\n{ACCELERATE}", tmp_path) == "equal\nequal\n"


TRAINER = """
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    def trained(compiled, workers=0):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=16,
        )
        model = LlamaForCausalLM(config)
        ids = torch.randint(0, 32, (16, 8), generator=torch.Generator().manual_seed(1))
        rows = [{"input_ids": row, "labels": row} for row in ids]
        arguments = TrainingArguments(
            output_dir=sys.argv[0] + "_out", per_device_train_batch_size=4, max_steps=4, learning_rate=0.05, seed=0,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
            dataloader_num_workers=workers,
        )
        if compiled:
            model.compile(backend="helion_tpu")
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:4])
        trainer.train()
        return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.evaluate()

    if __name__ == "__main__":
        eager, losses, evaluated = trained(False)
        assert len(losses) == 4 and losses[-1] < losses[0]
        for workers in (0, 2):
            own, own_losses, own_evaluated = trained(True, workers)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
            pairs = zip([*losses, evaluated["eval_loss"]], [*own_losses, own_evaluated["eval_loss"]], strict=True)
            for one, other in pairs:
                assert abs(one - other) < 1e-3 * abs(one), (losses, own_losses)
            for one, other in zip(eager.parameters(), own.parameters(), strict=True):
                assert torch.allclose(one, other, rtol=1e-2, atol=1e-4)
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            print("equal")
"""


def test_the_trainer_of_transformers(tmp_path: pathlib.Path) -> None:
    """Four steps of a decoder, and an evaluation; batches come from the process, and from workers, which are forked
    after JAX ran."""
    printed = run(f"{MODEL}\n{TRAINER}", tmp_path, TOKENIZERS_PARALLELISM="false")
    assert [line for line in printed.splitlines() if line == "equal"] == ["equal"] * 2
