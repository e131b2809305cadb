"""Train the sample model.  Enters: the corpus, a seed, the number of steps; leaves: a checkpoint folder and its loss.

    python training/train.py --prose tinyshakespeare.txt
    python training/train.py --start convert/sample --steps 300 --rate 1e-3    # go on, after a change of some facts

Writes the folder that halfbyte ships (convert/sample) with its held-out evaluation, loss.csv and loss.png.  On two CPU
cores the run takes about an hour; `--device cuda` takes the same steps on a GPU.  Needs the extra `training`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from corpus import documents
from evaluation import held_out_document, write_evaluation
from network import Network, Shape, load_checkpoint, save_checkpoint
from rows import packed_rows
from tokenizer import save_tokenizer, train_tokenizer
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
TOKENIZER_DOCUMENTS, VALIDATION_BATCHES, ROWS_AT_ONCE = 20_000, 2, 2048
WARM_UP = 50

Loss = tuple[int, float, float]  # step, loss of the training text since the last, loss of held-out text


@dataclass(frozen=True)
class Settings:
    """A run, as the command line's help tells; `compiled`: by torch.compile."""

    steps: int
    rows: int
    rate: float
    weight_decay: float
    seed: int
    device: str
    compiled: bool
    start: Path | None = None
    task_share: float = documents.TASK_SHARE


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "convert" / "sample", help="the checkpoint folder")
    parser.add_argument("--logs", type=Path, default=HERE, help="folder of loss.csv and loss.png")
    parser.add_argument("--prose", type=Path, help="a text of public-domain prose to mix in (2 %% of the documents)")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="go on from this checkpoint, with its tokenizer")
    parser.add_argument("--steps", type=int, default=2200, help="steps (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="rows of 512 tokens a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of matrices (default: %(default)s)")
    parser.add_argument(
        "--task-share",
        type=float,
        default=documents.TASK_SHARE,
        help="tasks among the questions (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the text and the weights (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    prose = arguments.prose.read_text("utf-8") if arguments.prose else ""
    if prose and len(prose) < documents.LEAST_PROSE:
        parser.error(f"--prose {arguments.prose}: has {len(prose)} letters; {documents.LEAST_PROSE} are needed")
    settings = Settings(
        arguments.steps,
        arguments.rows,
        arguments.rate,
        arguments.weight_decay,
        arguments.seed,
        arguments.device,
        compiled=shutil.which("g++") is not None or arguments.device != "cpu",  # torch.compile needs a C++ compiler
        start=arguments.start,
        task_share=arguments.task_share,
    )
    random = Random(settings.seed)
    shape = Shape()
    if settings.start:
        tokenizer = Tokenizer.from_file(str(settings.start / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(documents.document(random, prose) for _ in range(TOKENIZER_DOCUMENTS))
    earlier = read_losses(arguments.logs) if settings.start else []
    network, losses = train(settings, shape, tokenizer, random, prose)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, arguments.output, shape.context)
    save_checkpoint(network, arguments.output)
    write_evaluation(arguments.output)
    done = earlier[-1][0] if earlier else 0
    write_losses(earlier + [(done + step, trained, held_out) for step, trained, held_out in losses], arguments.logs)


def train(
    settings: Settings, shape: Shape, tokenizer: Tokenizer, random: Random, prose: str = ""
) -> tuple[Network, list[Loss]]:
    """Return the trained network and the losses in nats a token."""
    torch.manual_seed(settings.seed)
    network = Network(shape)
    if settings.start:
        load_checkpoint(network, settings.start)
    network = network.to(settings.device)
    loss_of = torch.compile(network) if settings.compiled else network
    optimizers = _optimizers(network, settings)
    held_out = Random(f"held out {settings.seed}")
    validation = np.split(
        packed_rows(lambda: held_out_document(held_out), tokenizer, VALIDATION_BATCHES * settings.rows, shape.context),
        VALIDATION_BATCHES,
    )
    next_document = partial(documents.document, random, prose, settings.task_share)
    rows = np.empty((0, shape.context + 1), np.int16)
    losses: list[Loss] = []
    sums: list[float] = []
    started = time.monotonic()
    for step in range(1, settings.steps + 1):
        if len(rows) < settings.rows:
            rows = packed_rows(next_document, tokenizer, ROWS_AT_ONCE, shape.context)
        batch, rows = rows[: settings.rows], rows[settings.rows :]
        rate = min(step / WARM_UP, 1 - (step - 1) / settings.steps)
        loss = _loss(loss_of, batch, settings.device)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * rate
            optimizer.step()
            optimizer.zero_grad()
        sums.append(loss.item())
        if step % 20 == 0 or step == settings.steps:
            with torch.no_grad():
                found = np.mean([_loss(loss_of, part, settings.device).item() for part in validation])
            losses.append((step, sum(sums) / len(sums), float(found)))
            sums.clear()
            seconds = time.monotonic() - started
            speed = step * settings.rows * shape.context / seconds
            left = seconds / step * (settings.steps - step) / 60
            print(
                f"step {step}/{settings.steps}  loss {losses[-1][1]:.3f}  held out {found:.3f}  "
                f"{speed:,.0f} tokens/s  {left:.0f} min left",
                flush=True,
            )
    return network, losses


def _optimizers(network: Network, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices (Moonlight's scale, arXiv:2502.16982), AdamW for the embedding and the norms."""
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and not name.startswith("embed")]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or name.startswith("embed")]
    muon = torch.optim.Muon(matrices, settings.rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, settings.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def _loss(network: torch.nn.Module, rows: np.ndarray, device: str) -> torch.Tensor:
    """rows: int16 [rows, context + 1], -1 where there is no token."""
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    inputs, targets = ids[:, :-1].clamp_min(0), ids[:, 1:]
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        return network(inputs, targets.where(targets >= 0, -100))


def read_losses(folder: Path) -> list[Loss]:
    """Return what `write_losses` wrote."""
    with (folder / "loss.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"]), float(row["held_out_loss"])) for row in csv.DictReader(file)]


def write_losses(losses: list[Loss], folder: Path) -> None:
    """Write loss.csv and its picture."""
    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss", "held_out_loss"))
        writer.writerows((step, f"{loss:.4f}", f"{held_out:.4f}") for step, loss, held_out in losses)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, trained, held_out = zip(*losses, strict=True)
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(steps, trained, label="training text")
    axes.plot(steps, held_out, label="held-out text")
    axes.set(xlabel="step", ylabel="loss, nats per token", title="Training the sample model")
    axes.set_ylim(0, min(4, max(trained)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=100)


if __name__ == "__main__":
    main()
