#!/usr/bin/env python3
"""Write small data files for the zero-shot tasks, and what lm-evaluation-harness chooses on them.

    python scripts/make_task_golden.py --model models/union-4m --out test/fixtures/tasks

The items are made up for the test, in the layouts of the data sets' own files. ``expected.json`` holds, for each task, the
log-likelihoods and metrics of the harness in float32. Needs lm-eval, pyarrow, torch and transformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def choices(*texts: str) -> dict[str, list[str]]:
    return {"text": list(texts), "label": [chr(65 + i) for i in range(len(texts))]}


SCIENCE = [
    ("Which of these gives the Earth most of its light?", choices("the Moon", "the Sun", "a distant star", "the sea"), "B"),
    ("What must a plant have in order to grow?", choices("water and light", "salt", "a strong wind", "gold"), "A"),
    ("Ice that is warmed becomes", choices("stone", "smoke", "water", "iron"), "C"),
    ("How many seasons does a year have in temperate lands?", choices("two", "three", "four", "a hundred"), "C"),
    ("Which unit measures a temperature of 20°?", choices("metre", "degree Celsius", "litre"), "B"),
    ("Who carries pollen from flower to flower? ", choices("bees", "stones", "rivers of the north", "clouds"), "A"),
]

DATA: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [{"question": q, "choices": c, "answerKey": a} for q, c, a in SCIENCE],
    "arc_challenge": [{"question": q, "choices": c, "answerKey": a} for q, c, a in reversed(SCIENCE)],
    "openbookqa": [{"question_stem": q, "choices": c, "answerKey": a} for q, c, a in SCIENCE],
    "piqa": [
        {"goal": "To keep bread fresh", "sol1": "put it into a closed box.", "sol2": "leave it in the rain.", "label": 0},
        {"goal": "To dry a coat", "sol1": "lay it into a river.", "sol2": "hang it in the sun.", "label": 1},
        {"goal": "How do you open a letter?", "sol1": "Cut the envelope along its edge", "sol2": "Burn it", "label": 0},
        {"goal": "To cross a wide river", "sol1": "take the bridge", "sol2": "take the bridge that the nation built for commerce", "label": 1},
    ],
    "hellaswag": [
        {"activity_label": "Sailing", "ctx_a": "A crew raises the sail.", "ctx_b": "the ship", "label": "2",
         "endings": ["is eaten by the crew.", "reads a newspaper [step] twice.", "leaves the harbour with the wind.", "sings  to the Congress."]},
        {"activity_label": "Removing ice from car", "ctx_a": "A man stands before a car covered with ice.", "ctx_b": "he", "label": "0",
         "endings": ["scrapes the ice off the windows.", "sells the winter.", "plants a tree on it.", "votes."]},
        {"activity_label": "Baking", "ctx_a": "How to bake bread [title] Mix flour and water.", "ctx_b": "", "label": "1",
         "endings": ["Drive to the sea.", "Knead the dough and let it rest. [title] Bake it.", "Fold the newspaper.", "Salute the flag."]},
        {"activity_label": "Public speech", "ctx_a": "A president stands before the House.", "ctx_b": "she Turns a page and", "label": "3",
         "endings": ["swims.", "melts the ice.", "eats the page.", "goes on with the state of the Union."]},
    ],
    "winogrande": [
        {"sentence": "The treaty did not fit into the drawer because the _ was too small.", "option1": "treaty", "option2": "drawer", "answer": "2"},
        {"sentence": "_ thanked the senator since Mary had been helped by him.", "option1": "Mary", "option2": "The senator", "answer": "1"},
        {"sentence": "John paid Paul after _ had finished the work.", "option1": "Paul", "option2": "John", "answer": "1"},
        {"sentence": "The army needed the bridge more than the road, as the _ was broken.", "option1": "road", "option2": "bridge", "answer": "2"},
    ],
    "boolq": [
        {"passage": "The Union is made of states. Each state elects two senators.", "question": "does each state elect senators", "label": 1},
        {"passage": "Gold was found in the west. Many went there.", "question": "was gold found in the east", "label": 0},
        {"passage": "The navy had nine ships in that year.", "question": "did the navy have ships", "label": 1},
    ],
    "rte": [
        {"sentence1": "The Congress passed the act in March.", "sentence2": "The act was passed.", "label": 0},
        {"sentence1": "The harvest of the south failed.", "sentence2": "The harvest was the best in years.", "label": 1},
        {"sentence1": "Three new states joined the Union.", "sentence2": "The Union grew.", "label": 0},
    ],
    "lambada_openai": [
        {"text": "We have a government of the people, by the people and for the people"},
        {"text": "The message of the President was read to both Houses of Congress"},
        {"text": "I thank the American people and ask for God's blessing on the United States"},
        {"text": "He opened the door of the café and greeted his old friend José"},
    ],
}
DATA["lambada_standard"] = DATA["lambada_openai"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = HFLM(pretrained=str(options.model), dtype=torch.float32, device="cpu", batch_size=1)
    manager = TaskManager()
    expected = {}
    for name, records in DATA.items():
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        overrides = {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        }
        config = manager._factory._load_full_config(manager._index[name], overrides)
        config.pop("tag", None)
        task = ConfigurableTask(config=config)
        found = lm_eval.simple_evaluate(model=model, tasks=[task], num_fewshot=0, log_samples=True, bootstrap_iters=0)
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        expected[name] = {
            "version": found["versions"][name],
            "metrics": {key.split(",")[0]: value for key, value in found["results"][name].items() if isinstance(value, float)},
            "items": [
                {
                    "logLikelihoods": [response[0][0] for response in sample["resps"]],
                    "greedy": [bool(response[0][1]) for response in sample["resps"]],
                    "acc": float(sample["acc"]),
                    **({"accNorm": float(sample["acc_norm"])} if "acc_norm" in sample else {}),
                }
                for sample in samples
            ],
        }
        print(name, expected[name]["metrics"])
    pq.write_table(pa.Table.from_pylist(DATA["arc_easy"]), options.out / "arc_easy.parquet")
    result = {"harness": f"lm-eval {lm_eval.__version__}", "tasks": expected}
    (options.out / "expected.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
