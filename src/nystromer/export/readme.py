"""The README of an exported folder: the lines that run it."""

from __future__ import annotations

from typing import Any

from nystromer.export.embedder import Embedder

IMPORTS = {"onnx": "numpy, onnxruntime", "openvino": "numpy, openvino", "torch": "torch"}
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
RUN = {
    "onnx": """session = onnxruntime.InferenceSession("model.onnx")
output = session.run(None, inputs)[0]""",
    "openvino": """model = openvino.Core().compile_model("model.xml", "CPU")
output = model(inputs)[0]""",
    "torch": """model = torch._inductor.aoti_load_package("model.pt2")
output = model(*inputs.values())""",
}


def readme(embedder: Embedder, tokenizer: Any, to: str, name: str) -> str:
    """Returns the text of README.md, with five lines that run the folder."""
    array = "torch.tensor" if to == "torch" else "numpy.array"
    texts = '["a text", "another one"]'
    if tokenizer.is_fast:  # its file says how to cut and to pad
        library = "tokenizers"
        line = f'batch = tokenizers.Tokenizer.from_file("tokenizer.json").encode_batch({texts})'
        fields = [f'"{x}": {array}([x.{FIELDS[x]} for x in batch])' for x in embedder.inputs]
    else:
        library = "transformers"
        line = (
            f'batch = transformers.AutoTokenizer.from_pretrained(".")({texts}, padding=True, '
            "truncation=True)"
        )
        fields = [f'"{x}": {array}(batch["{x}"])' for x in embedder.inputs]
    packages = f"{IMPORTS[to]}, {library}"
    return f"""# {name.rstrip("/").rpartition("/")[2]}, exported by nystromer

The graph reads token ids of any number of texts, padded to the longest, of any length up to
{tokenizer.model_max_length} tokens, and gives `{embedder.output}`. The tokenizer cuts a text there.

Needed: `pip install {packages.replace(",", "")}`.

```python
import {packages}
{line}
inputs = {{{", ".join(fields)}}}
{RUN[to]}
```
"""
