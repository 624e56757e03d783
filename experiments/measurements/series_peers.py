"""What other libraries make of the series of experiments.recognize.

Run:     python -m experiments.measurements.series_peers --dataset japanese_vowels
Prints:  of each, the share of the test series that it labels right, and the processor time of
         learning and labelling: mean and range over the seeds where chance takes part. rnnjax is
         ``experiments.recognize`` with the settings given here, which chooses its weights by the
         validation part; the others learn from that part as well. --seed divides the series, once
         for all. What is not installed is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.recognize import command
from experiments.recognize.model import Known
from experiments.recognize.series import Part, Series, read_series
from experiments.recognize.settings import Settings as Recognize
from experiments.running.console import exit_code, print_table
from experiments.running.interrupts import Interrupted
from experiments.running.packages import takes_part
from experiments.running.parsing import OmitArgPrefixes, parse
from experiments.running.run_settings import RunSettings
from experiments.running.setting_checks import check_settings, refuse_unread, whole
from experiments.throughput.measuring import outcome
from rnnjax.data import DataError, pad

Method = Callable[[Part, Part, int], float]  # (train, test, seed) -> accuracy on the test part


@dataclass(frozen=True)
class Settings:
    """Measure other methods of classifying series beside the network of experiments.recognize."""

    network: Recognize = field(default_factory=Recognize)
    """The data, and the network of rnnjax and PyTorch."""
    seeds: int = 3
    """Runs of each method in which chance takes part, from --seed on."""


def _flat(part: Part, longest: int) -> np.ndarray:
    """All values of each series in one row, zeros behind short ones."""
    xs, _ = pad(part.rows)
    return np.pad(xs, ((0, 0), (0, longest - xs.shape[1]), (0, 0))).reshape(len(xs), -1)


def _scikit(make: Callable[[int], Any], longest: int) -> Method:
    def run(train: Part, test: Part, seed: int) -> float:
        fitted = make(seed).fit(_flat(train, longest), train.classes)
        return float(fitted.score(_flat(test, longest), test.classes))

    return run


def _aeon(make: Callable[[int], Any], longest: int | None) -> Method:
    """A classifier of aeon, channels first; padded where it wants equal lengths."""

    def rows_of(part: Part) -> Any:
        if longest is None:
            return [row.T for row in part.rows]
        xs = _flat(part, longest).reshape(len(part.rows), longest, -1)
        return np.ascontiguousarray(xs.transpose(0, 2, 1))

    def run(train: Part, test: Part, seed: int) -> float:
        fitted = make(seed).fit(rows_of(train), np.array(train.classes))
        return float(np.mean(fitted.predict(rows_of(test)) == test.classes))

    return run


def torch_network(settings: Recognize, known: Known) -> Any:
    """The network of the settings, of one layer, in PyTorch; it drops what rnnjax's drops."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    size, places = settings.hidden_size, settings.pooling == "places"

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.GRU(len(known.mean), size, bidirectional=True, batch_first=True)
            features = 2 * size * (known.longest if places else 1)
            self.head = torch.nn.Linear(features, len(known.labels))
            self.drop = torch.nn.Dropout(settings.dropout)

        def forward(self, xs: Any, lengths: Any) -> Any:
            xs = xs if places else self.drop(xs)  # see _by_places of experiments.recognize
            packed = pack_padded_sequence(xs, lengths, batch_first=True, enforce_sorted=False)
            ys, _ = pad_packed_sequence(self.layer(packed)[0], True, total_length=xs.shape[1])
            return self.head(self.drop(ys.flatten(1) if places else ys.sum(1) / lengths[:, None]))

    return Network()


def _torch(settings: Recognize, known: Known) -> Method:
    """PyTorch: Adam along a cosine, under noise, and the running average of the weights."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    def tensors(part: Part) -> tuple[Any, Any, Any]:
        xs, lengths = pad(part.rows)
        xs = np.pad(xs, ((0, 0), (0, known.longest - xs.shape[1]), (0, 0)))
        return torch.tensor(xs), torch.tensor(lengths).long(), torch.tensor(part.classes)

    def run(train: Part, test: Part, seed: int) -> float:
        torch.set_num_threads(1)  # layers so small are slower on two
        torch.manual_seed(seed)
        network, (xs, lengths, labels) = torch_network(settings, known), tensors(train)
        moving = get_ema_multi_avg_fn(settings.average_decay)
        average = AveragedModel(network, multi_avg_fn=moving)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        steps = settings.epochs * -(-len(xs) // settings.batch_size)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, steps, settings.learning_rate / 100
        )
        for _ in range(settings.epochs):
            for at in torch.randperm(len(xs)).split(settings.batch_size):
                noisy = xs[at] + settings.noise * torch.randn_like(xs[at])
                logits = network(noisy, lengths[at])
                loss = torch.nn.functional.cross_entropy(logits, labels[at])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                optimizer.step()
                rate.step()
                average.update_parameters(network)
        average.eval()
        with torch.inference_mode():
            xs, lengths, labels = tensors(test)
            return float((average(xs, lengths).argmax(-1) == labels).float().mean())

    return run


def _ours(settings: Recognize, series: Series) -> Method:
    def run(train: Part, test: Part, seed: int) -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            of_run = dataclasses.replace(settings, seed=seed, out=Path(folder) / "run")
            fitted = command.train(of_run, series)
        return fitted.test["accuracy"]

    return run


def version_of(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def methods(settings: Recognize, series: Series) -> dict[str, tuple[bool, Method]]:
    """By name: whether chance takes part, and the method; of what is installed."""
    known = Known.of(series)
    found: dict[str, tuple[bool, Method]] = {}
    size = f"{settings.cell.upper()} {settings.hidden_size}"
    found[f"{version_of('rnnjax')}, {size} {settings.direction}"] = True, _ours(settings, series)
    same = settings.cell == "gru" and settings.direction == "both" and settings.layers == 1
    if takes_part("PyTorch", "torch") and same and settings.pooling in ("mean", "places"):
        found[f"{version_of('torch')}, {size} both"] = True, _torch(settings, known)
    if takes_part("scikit-learn", "sklearn"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        version = version_of("scikit-learn")
        found[f"{version}, logistic regression"] = (
            False,
            _scikit(lambda seed: LogisticRegression(max_iter=1000), known.longest),
        )
        found[f"{version}, nearest neighbour"] = (
            False,
            _scikit(lambda seed: KNeighborsClassifier(1), known.longest),
        )
    if takes_part("aeon", "aeon") and takes_part("numba", "numba"):
        from aeon.classification.convolution_based import (  # pyright: ignore[reportMissingImports]
            MiniRocketClassifier,
        )
        from aeon.classification.distance_based import (  # pyright: ignore[reportMissingImports]
            KNeighborsTimeSeriesClassifier,
        )

        version = version_of("aeon")
        found[f"{version}, nearest neighbour by DTW"] = (
            False,
            _aeon(lambda seed: KNeighborsTimeSeriesClassifier("dtw", n_neighbors=1), None),
        )
        found[f"{version}, MiniRocket"] = (
            True,
            _aeon(lambda seed: MiniRocketClassifier(random_state=seed), known.longest),
        )
    return found


def measure(settings: Settings) -> list[dict[str, str]]:
    """A row for each method."""
    series = read_series(settings.network)
    known = Known.of(series)
    learned, chosen, tested = series.parts
    train = Part(known.scaled(learned.rows + chosen.rows), learned.classes + chosen.classes)
    test = Part(known.scaled(tested.rows), tested.classes)
    rows = []
    for name, (by_chance, method) in methods(settings.network, series).items():
        figures, seconds = [], []
        try:
            for seed in range(settings.seeds if by_chance else 1):
                began = time.process_time()
                figures.append(method(train, test, settings.network.seed + seed))
                seconds.append(time.process_time() - began)
            found = {"right": spread_of(figures, ".4f"), "seconds": spread_of(seconds, ".1f")}
        except (DataError, Interrupted):  # of the user's doing
            raise
        except Exception as error:  # whatever a method does wrong, the next one gets its turn
            failure = outcome(error)
            found = {"right": f"{failure['status']}: {failure['note']}", "seconds": ""}
        rows.append({"method": name, **found})
    return rows


def spread_of(figures: list[float], form: str) -> str:
    mean = format(float(np.mean(figures)), form)
    if len(figures) == 1:
        return mean
    return f"{mean} ({min(figures):{form}} to {max(figures):{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    program = "python -m experiments.measurements.series_peers"
    settings = parse(
        Settings,
        program,
        arguments,
        config=(OmitArgPrefixes,),
    )

    def run() -> None:
        check_settings(settings.network)
        of_a_run = (*RunSettings.names(), "devices")  # of which there is none here
        refuse_unread(settings.network, "to experiments.recognize", False, *of_a_run)
        check_settings(settings, seeds=whole(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of others' own use of NumPy and numba
            print_table(measure(settings))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
