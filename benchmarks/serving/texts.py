"""How well does the server do on texts under load, what does tokenization cost, and is work predicted well?

    python benchmarks/serving/texts.py policies   # attainment at 100 and 150 % against the largest anchor alone
    python benchmarks/serving/texts.py tokens     # microseconds of a text, and its share of a request
    python benchmarks/serving/texts.py work       # measured over predicted time of calls, by batch and length

The network has the sizes of BERT-Tiny and MiniLM-L6, with random weights and a WordPiece tokenizer made from this
repository's pages, whose lines are the texts. So there are no accuracies: stitches count by their multiply-adds.
Loads are shares of what the largest anchor answers, by the table that is measured first. Each server is a process; all
are up, and take turns, in another order for each seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import uvloop
from open_loop import read_answer
from server_process import start_server

import timm_stitch
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.text_service import TextService
from timm_stitch.deployment.serving.texts import TextBatch
from timm_stitch.deployment.simulation import gamma_arrivals
from timm_stitch.families.text_endpoint import Tokens

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row, write_rows

VOCABULARY = 30_522
SIZES = ((128, 2, 2), (384, 6, 12))  # width, layers, heads; large enough that the network is the bottleneck
SHAPES = ((1, 16), (1, 40), (1, 128), (1, 512), (2, 256), (4, 64), (4, 128), (8, 16), (8, 60), (16, 16), (16, 32))


def read_lines() -> list[str]:
    """Read the lines of the documentation that are texts."""
    pages = sorted(Path(__file__).parents[2].glob("docs/*.md"))
    return [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 20]


def make_network(folder: Path, lines: list[str]) -> None:
    """Save a classifier with a tokenizer, and scores by which stitches are ranked."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    backend.train_from_iterator(lines, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512,
    )  # fmt: skip
    torch.manual_seed(0)
    anchors = []
    for width, layers, heads in SIZES:
        config = BertConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, num_labels=4,
        )  # fmt: skip
        anchors.append(BertForSequenceClassification(config))
    model = timm_stitch.stitch(anchors, tokenizers=[tokenizer] * len(anchors)).eval()
    order = sorted(model.stitch_table(), key=lambda row: row["macs"])  # the most expensive counts as the best
    model.results.add({"stitch_id": row["stitch_id"], "top1": 50 + 0.01 * n} for n, row in enumerate(order))
    timm_stitch.save_pretrained(model, folder)


def measure(folder: Path, config: ServingConfig) -> TextService:
    """Open the network as a server does, and save this machine's latencies in its folder."""
    torch.set_num_threads(1)
    model = timm_stitch.from_hub(folder)
    service = TextService(model, config)
    timm_stitch.save_pretrained(model, folder)
    return service


def send(url: str, arrivals: list[float], lines: list[str], pipe: Any) -> None:
    """Send each text when it is due, and give a row a request back; a process of its own."""
    where = urlsplit(url)

    async def one(due: float, text: str, idle: list[Any], rows: list[Row]) -> None:
        body = text.encode()
        head = "POST /predict?truncate=true HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        row: Row = {"status": 0, "latency": None, "stitch_id": None, "macs": 0}
        rows.append(row)
        while row["latency"] is None:
            kept = bool(idle)
            try:
                reader, writer = idle.pop() if kept else await asyncio.open_connection(where.hostname, where.port)
                writer.write(head.encode() + body)
                status, _, answer = await asyncio.wait_for(read_answer(reader), 30)
                row |= {"status": status, "latency": time.monotonic() - due}
                if status == 200:
                    values = json.loads(answer)
                    row |= {key: values[key] for key in ("stitch_id", "macs", "batch", "call_ms")}
                idle.append((reader, writer))
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                if not kept:
                    row["latency"] = time.monotonic() - due

    async def run() -> list[Row]:
        draw, idle, rows, tasks = random.Random(0), [], [], []
        start = time.monotonic() + 0.2
        for at in arrivals:
            await asyncio.sleep(max(0.0, start + at - time.monotonic()))
            tasks.append(asyncio.create_task(one(start + at, draw.choice(lines), idle, rows)))
        await asyncio.gather(*tasks)
        return rows

    pipe.send(uvloop.run(run()))


def send_texts(url: str, arrivals: list[float], lines: list[str]) -> list[Row]:
    """Send texts from a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=send, args=(url, arrivals, lines, there), daemon=True)
    process.start()
    rows: list[Row] = here.recv()
    process.join(30)
    return rows


def policies(options: argparse.Namespace, folder: Path, lines: list[str]) -> list[Row]:
    """Compare the server with one of the largest anchor alone, in turns."""
    base = ServingConfig(options.latency_ms)
    service = measure(folder, base)
    network, table = service.engine.deployment.network, service.table
    largest = max(table.stitch_ids, key=lambda k: network.stitches[k]["macs"])
    lengths = [len(network.endpoint.tokenize(line, True).ids) for line in lines]
    mean = statistics.fmean(map(network.weight_of, lengths))
    capacity = 1 / (mean * table.each[table.stitch_ids.index(largest)])
    print(
        f"stitches {table.stitch_ids}; {len(lines)} texts of {statistics.median(lengths):g} tokens (median, at most "
        f"{max(lengths)}), {mean:.2f} units; stitch {largest} answers {capacity:.0f} texts a second"
    )
    service.close()
    configs = {"ours": base, f"stitch {largest}": ServingConfig(options.latency_ms, policy="fixed", stitch_id=largest)}
    runs: list[Row] = []
    with ExitStack() as stack:
        calls = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            name: start_server(str(folder), c, calls / f"{n}.json") for n, (name, c) in enumerate(configs.items())
        }
        for seed in range(options.seeds):
            for load in options.loads:
                arrivals = gamma_arrivals(load * capacity, options.seconds, 1.0, seed)
                for name in list(servers)[:: 1 if seed % 2 else -1]:
                    rows = send_texts(servers[name].url, arrivals, lines)
                    met = [r for r in rows if r["status"] == 200 and r["latency"] <= options.latency_ms / 1e3]
                    runs.append({
                        "policy": name, "load": load, "seed": seed, "attainment": 100 * len(met) / len(rows),
                        "mmacs": statistics.fmean(r["macs"] for r in met) / 1e6 if met else 0.0,
                        "batch": statistics.fmean(r["batch"] for r in met) if met else 0.0,
                        "statuses": dict(Counter(str(r["status"]) for r in rows)),
                        "stitches": dict(Counter(str(r["stitch_id"]) for r in met)),
                    })  # fmt: skip
                    print_row(runs[-1])
        for server in servers.values():
            server.stop()
            slow = [
                took / expected for _, took, expected, _ in json.loads(server.calls.read_text()) if expected and took
            ]
            print(f"{len(slow)} calls took {statistics.median(slow):.2f} of their prediction (median)")
    for load in options.loads:
        for name in configs:
            own = [run for run in runs if (run["policy"], run["load"]) == (name, load)]
            each = ", ".join(f"{run['attainment']:.1f}" for run in own)
            mean_of = {key: statistics.fmean(run[key] for run in own) for key in ("attainment", "mmacs", "batch")}
            print(f"{100 * load:.0f} %  {name:10} {mean_of['attainment']:5.1f} % in time ({each}), "
                  f"{mean_of['mmacs']:.0f} MMACs, {mean_of['batch']:.1f} texts a call")  # fmt: skip
    return runs


def tokens(options: argparse.Namespace, folder: Path, lines: list[str]) -> list[Row]:
    """Measure tokenization: in itself, by the pool, and as a share of a request of an idle server."""
    service = measure(folder, ServingConfig(options.latency_ms))
    endpoint, picked = service.engine.deployment.network.endpoint, random.Random(0).sample(lines, 300)

    def micros(work: Any) -> float:
        spent = []
        for line in picked:
            began = time.perf_counter()
            work(line)
            spent.append(1e6 * (time.perf_counter() - began))
        return statistics.median(spent)

    row: Row = {
        "characters": statistics.median(map(len, picked)),
        "tokenize_us": micros(lambda line: endpoint.tokenize(line, True)),
    }
    row["pool_us"] = micros(lambda line: service.tokenize_soon([line], True, time.monotonic() + 5).result())
    service.close()
    with tempfile.TemporaryDirectory() as calls:
        server = start_server(str(folder), ServingConfig(options.latency_ms), Path(calls, "calls.json"))

        def ask(line: str) -> None:
            asked = urllib.request.Request(
                f"{server.url}/predict?truncate=true", line.encode(), {"content-type": "text/plain"}
            )
            with urllib.request.urlopen(asked) as answer:
                answer.read()

        row["request_us"] = micros(ask)
        server.stop()
    row["share"] = row["tokenize_us"] / row["request_us"]
    print_row(row)
    return [row]


def work(options: argparse.Namespace, folder: Path, lines: list[str]) -> list[Row]:
    """Measure calls of several batches and lengths, in turns with those of short texts that the table holds."""
    service = measure(folder, ServingConfig(options.latency_ms))
    deployment, rows = service.engine.deployment, []
    network, sizes = deployment.network, [2**n for n in range(7)]
    shapes = {f"{count}x{length}": (count, length) for count, length in SHAPES}
    batches: dict[Any, TextBatch] = {size: network.example(size) for size in sizes}
    for name, (count, length) in shapes.items():
        batches[name] = network.make_batch([Tokens(range(4, 4 + length), [0] * length)] * count)
    for stitch_id in service.table.stitch_ids:
        spent: dict[Any, list[float]] = {name: [] for name in batches}
        for turn in range(-1, 7):
            for name in random.Random(turn).sample(list(batches), len(batches)):
                began = time.perf_counter()
                deployment.run(batches[name], stitch_id)
                spent[name] += [time.perf_counter() - began] if turn >= 0 else []
        each = {name: statistics.median(seconds) for name, seconds in spent.items()}
        ratios = {
            name: round(each[name] / np.interp(count * network.weight_of(length), sizes, [each[k] for k in sizes]), 2)
            for name, (count, length) in shapes.items()
        }
        rows.append({"stitch_id": stitch_id, "ratios": ratios, "median": statistics.median(ratios.values())})
        print_row(rows[-1])
    service.close()
    return rows


def main() -> None:
    """Make one of the comparisons."""
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["policies", "tokens", "work"], help="comparison to make")
    parser.add_argument("--latency-ms", type=float, default=200.0, help="latency target in ms")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a run")
    parser.add_argument("--seeds", type=int, default=3, help="number of rounds")
    parser.add_argument("--loads", type=float, nargs="+", default=[1.0, 1.5], help="shares of the capacity")
    parser.add_argument("--output", type=Path, default=Path("texts.jsonl"), help="JSON-lines file for the rows")
    options = parser.parse_args()
    lines = read_lines()
    with tempfile.TemporaryDirectory() as folder:
        make_network(Path(folder, "net"), lines)
        compare = {"policies": policies, "tokens": tokens, "work": work}[options.what]
        write_rows(options.output, compare(options, Path(folder, "net"), lines))


if __name__ == "__main__":
    main()
