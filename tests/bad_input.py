"""What the tests of bad input share: the commands, by what they read, load and write."""

import json
import os

GOOD = "".join(
    json.dumps({"text": f"w{i} w{i + 1}. w2. w3.", "label": i % 2}) + "\n" for i in range(30)
)
WIDE = "x" * 300

READS_ROWS = {  # and whether the command has --skip-bad-lines
    "train --train-file {file} --max-length 64 --output out": True,
    "predict {classifier} {file} --output out.jsonl": True,
    "pretrain {file} --tokenizer bytes --sequence-length 32 --output out": True,
    "inspect {encoder} --text {file} --num-landmarks 4 --output out.png": False,
    "calibrate {encoder} --text {file} --num-landmarks 4 --output out.json": False,
    "convert {encoder} --distill --text {file} --num-landmarks 4 --output out": False,
}
LOADS = {
    "train --train-file good.jsonl --model {encoder} --output out": "encoder",
    "convert {encoder} --output out": "encoder",
    "convert {encoder} --distill --text good.jsonl --output out": "encoder",
    "calibrate {encoder} --text good.jsonl --output out.json": "encoder",
    "inspect {encoder} --text good.jsonl --output out.png": "encoder",
    "predict {classifier} good.jsonl --output out.jsonl": "classifier",
    "train --train-file good.jsonl --model {classifier} --output out": "classifier",
    "pretrain good.jsonl --from {pretrained} --sequence-length 32 --output out": "pretrained",
}
WRITES = (
    "train --train-file good.jsonl --output {output}",
    "predict {classifier} good.jsonl --output {output}.jsonl",
    "pretrain good.jsonl --tokenizer bytes --sequence-length 32 --output {output}",
    "lra listops --steps 1 --batch-size 2 --rows 8 --eval-rows 4 --cache cache --output {output}",
    "convert {encoder} --output {output}",
    "convert {encoder} --distill --text good.jsonl --output {output}",
    "convert old.model --output {output}",
    "calibrate {encoder} --text good.jsonl --output {output}.json",
    "inspect {encoder} --text good.jsonl --output {output}.png",
    "bench --lengths 64 --methods exact --repeats 1 --output {output}",
    "demo --output {output}",
)


def everything(folder):
    """Names and contents of all that is there, but for folders of a cache that are empty."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if not (path.is_dir() and "cache" in path.parts)
    }
