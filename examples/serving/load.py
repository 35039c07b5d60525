# SPDX-License-Identifier: Apache-2.0
"""Many clients at once against a server that runs: how long they wait, and whether each gets its own answers.

    python examples/serving/load.py --url http://127.0.0.1:8000 --clients 64 --candidates 1 --seconds 60

First it asks for each row alone. Then every client asks for random rows, again and again, and compares.
"""

import argparse
import csv
import http.client
import json
import random
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np


TOLERANCE = 1e-5  # sums of other batches are rounded otherwise
MAX_ROWS = 300  # that are asked for, each alone at first


class Client:
    """One connection that is kept."""

    def __init__(self, url: str):
        self.address = urlsplit(url)
        self.connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=300)
        self.num_refused = 0

    def ask(self, path: str, body: dict | None = None) -> dict:
        """The answer; after a 503 it comes again when it is told to."""
        data = None if body is None else json.dumps(body)
        while True:
            headers = {"Content-Type": "application/json"}
            self.connection.request("GET" if body is None else "POST", path, data, headers)
            response = self.connection.getresponse()
            said = json.loads(response.read())
            if response.status == 200:
                return said
            if response.status != 503:
                raise RuntimeError(f"{response.status}: {said}")
            self.num_refused += 1
            time.sleep(float(response.headers["Retry-After"]))


def read_rows(path: str | None, columns: list[str]) -> list[dict]:
    """Rows of a csv, or of the restaurants that come with the package: the model's columns."""
    if path is None:
        from flip_hf import load_ctr_dataset

        rows = load_ctr_dataset("restaurants")
    else:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    return [{name: row[name] for name in columns} for row in rows]


def measure(url: str, rows: list[dict], alone: list[float], clients: int, candidates: int, seconds: float) -> bool:
    """Prints one line; whether all answers came and were right."""
    waited, problems, num_refused = [], [], 0
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        nonlocal num_refused
        client, choose = Client(url), random.Random(number)
        try:
            while time.perf_counter() < until:
                chosen = choose.choices(range(len(rows)), k=candidates)
                start = time.perf_counter()
                said = client.ask("/predict", {"rows": [rows[place] for place in chosen]})["probabilities"]
                waited.append(time.perf_counter() - start)
                if not np.allclose(said, [alone[place] for place in chosen], rtol=0, atol=TOLERANCE):
                    problems.append("an answer is not that of its rows")
        except Exception as error:
            problems.append(f"lost: {error!r}")
        num_refused += client.num_refused

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(waited) * candidates / (time.perf_counter() - start)
    half, most = np.percentile(waited, [50, 99]) * 1000 if waited else (np.nan, np.nan)
    print(
        f"{clients:3} clients, {candidates:5,} candidates: {len(waited):7,} answers, p50 {half:9,.1f} ms, "
        f"p99 {most:9,.1f} ms, {rate:8,.0f} rows/s, {num_refused} asked to come again, {len(problems)} problems",
        flush=True,
    )
    for problem in sorted(set(problems))[:5]:
        print(f"    {problem}")
    return not problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="Of the server (default: http://127.0.0.1:8000)."
    )
    parser.add_argument("--data", help="A csv with the model's columns (default: the restaurants of the package).")
    parser.add_argument("--clients", type=int, default=64, help="That ask at the same time (default: 64).")
    parser.add_argument(
        "--candidates", type=int, nargs="+", default=[1], help="Rows of a request; several are measured one by one."
    )
    parser.add_argument("--seconds", type=float, default=60, help="For each number of candidates (default: 60).")
    arguments = parser.parse_args()
    about = Client(arguments.url).ask("/")
    rows = read_rows(arguments.data, about["columns"])[:MAX_ROWS]
    client = Client(arguments.url)
    alone = [client.ask("/predict", {"rows": [row]})["probabilities"][0] for row in rows]
    print(f"{about['mode']}: {len(rows):,} rows, {len(set(alone)):,} different probabilities", flush=True)
    right = []
    for candidates in arguments.candidates:
        right.append(measure(arguments.url, rows, alone, arguments.clients, candidates, arguments.seconds))
    if not all(right):
        sys.exit("answers were lost or mixed up")


if __name__ == "__main__":
    main()
