"""Kills runs at random moments and goes on with them: they must end as one that was never killed.

python tests/kill_runs.py KILLS [train | pretrain | distill | lra | mil ...]

Every run is a child of this process, which has imported everything: a run takes a second or two.
Takes a quarter of an hour for fifty kills of each.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

KILLED_TWICE = 2  # kills of one run, which then ends
TIMES = ("ms_per_step", "tokens_per_second")


def main(kills: int, names: list[str]) -> None:
    torch.set_num_threads(1)  # threads do not come along into a child
    for recipe in (
        "classify.train",
        "pretrain",
        "convert.encoder",
        "lra.training",
        "slides.training",
    ):
        importlib.import_module(f"nystromer.recipes.{recipe}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "datasets")
        make_inputs()
        commands = {name: COMMANDS[name].split() for name in names or COMMANDS}
        for name, words in commands.items():
            print(f"{name}: {kills_of(words, kills)}", flush=True)


COMMANDS = {
    "train": "train --train-file rows.jsonl --max-length 64 --num-landmarks 4 --epochs 4 --resume",
    "pretrain": "pretrain text.txt --tokenizer bytes --sequence-length 64 --num-landmarks 8 "
    "--held-out 0.2 --steps 20 --evaluations 5 --batch-size 8 --device-batch 4 --resume",
    "distill": "convert encoder --distill --text words.txt --num-landmarks 4 --steps 60",
    "lra": "lra listops --cache lra --rows 32 --eval-rows 8 --steps 8 --batch-size 2 --looks 4 "
    "--num-landmarks 16 --resume",
    "mil": "mil train --features features --labels labels.csv --model mean --embed-dim 16 "
    "--folds 2 --seeds 1 --epochs 3 --resume",
}


def kills_of(words: list[str], kills: int) -> str:
    """Kills runs of a command until there were as many kills, and compares how they end."""
    draw = random.Random(0)
    whole = result(words, "whole")
    start = time.perf_counter()
    result(words, "again")  # with all caches filled
    seconds = time.perf_counter() - start
    done, runs = 0, 0
    while done < kills:
        runs += 1
        for _ in range(min(KILLED_TWICE, kills - done)):
            done += killed(begin([*words, "--output", "killed"]), draw.uniform(0, seconds))
        found = contents("killed") if finished("killed") else result(words, "killed")
        if found != whole:
            differing = [x for x in {**whole, **found} if found.get(x) != whole.get(x)]
            raise SystemExit(f"{words[0]}: run {runs} ended otherwise: {differing}")
        shutil.rmtree("killed")
    for folder in ("whole", "again"):
        shutil.rmtree(folder)
    return f"{done} kills of {runs} runs of {seconds:.1f} s, all ended as one that was not killed"


def killed(child: int, seconds: float) -> bool:
    """Kills a child after so many seconds, and says whether it was still running."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        return True
    if code != 0 and not finished("killed"):
        check(code, "killed")
    return False


def begin(words: list[str]) -> int:
    """Starts a command in a child, and returns its process id."""
    from nystromer import cli

    child = os.fork()
    if child:
        return child
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["nystromer", *words]
    code = 1
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def result(words: list[str], folder: str) -> dict[str, object]:
    """Runs a command to its end, and returns what is in its folder."""
    child = begin([*words, "--output", folder])
    check(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), folder)
    return contents(folder)


def check(code: int, folder: str) -> None:
    """Stops if a command failed."""
    if code:
        raise SystemExit(f"{folder} ended with {code}: {Path('output.txt').read_text()[-2000:]}")


def finished(folder: str) -> bool:
    """Says whether the run in a folder is finished."""
    return (Path(folder) / "metrics.json").exists()


def contents(folder: str) -> dict[str, object]:
    """Returns all files of a run but for times and the record of how it was begun."""
    found: dict[str, object] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name not in ("run.json", "run.lock", "curves.png")
        if not path.relative_to(folder).parts[0].startswith("checkpoint")
    }
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    found["metrics.json"] = {name: x for name, x in metrics.items() if name not in TIMES}
    return found


def make_inputs() -> None:
    """Writes a file of rows, two of text, and an encoder."""
    from recipes.conftest import tiny_bert, word_tokenizer
    from recipes.slides.conftest import write_cohort

    draw = random.Random(0)
    rows = [
        {"text": "".join(draw.choices("ab", (2, 1) if i % 2 else (1, 2), k=40)), "label": i % 2}
        for i in range(48)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = (
        ". ".join(f"w{draw.randrange(99)} w{draw.randrange(9)}" for _ in range(12)) for _ in rows
    )
    Path("text.txt").write_text("\n\n".join(texts))
    Path("words.txt").write_text(" ".join(f"w{draw.randrange(200)}" for _ in range(20_000)))
    write_cohort(Path())
    tiny_bert().save_pretrained("encoder")
    word_tokenizer().save_pretrained("encoder")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]), sys.argv[2:])
